"""What some shards contribute to a mixture: documents that may take part, as columns of numbers.

Axes: d = documents; i = images of documents that have several, without the first of each; t = keys of
the takedown list.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64, UInt64

from data_pipelines.mix.documents import Documents


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Documents of consecutive shards of a source that may take part, unless they are duplicates."""

    first_shard: int
    num_shards: int
    documents: Documents
    is_held_out: Bool[np.ndarray, " d"]
    held_out_number: UInt64[np.ndarray, " d"]
    """The first bytes of what identifies a document: by it documents are held out."""
    later_images: UInt64[np.ndarray, " i"]
    """The same of all images but the first of documents that have several."""
    later_owner: Int64[np.ndarray, " i"]
    """Which of the documents they belong to."""
    takedown_found: Int32[np.ndarray, " t"]
    """Places of the takedown list that name one of the documents."""
    content: UInt64[np.ndarray, " d"]
    """The same in exact duplicates."""
    phash: UInt64[np.ndarray, " d"]
    has_phash: Bool[np.ndarray, " d"]
    num_documents: int
    """Those that came in."""
    filtered: Mapping[str, int]
    rejects: pa.Table
    columns: frozenset[str]
    """That at least one of the shards has in its index."""

    @property
    def shards(self) -> range:
        """Numbers of its shards in the mixture."""
        return range(self.first_shard, self.first_shard + self.num_shards)

    def arrays(self) -> dict[str, np.ndarray]:
        """All columns by name, those of the documents among them."""
        own = {name: getattr(self, name) for name in OWN_COLUMNS}
        return {**vars(self.documents), **own}


OWN_COLUMNS = (
    "is_held_out", "held_out_number", "later_images", "later_owner", "takedown_found", "content", "phash",
    "has_phash",
)  # fmt: skip
"""Beside those of `Documents`."""


def with_arrays(arrays: Mapping[str, np.ndarray], **values: object) -> Candidates:
    """Candidates of columns by name, as `Candidates.arrays` gives them, and of what else they have."""
    documents = Documents(**{field.name: arrays[field.name] for field in fields(Documents)})
    own = {name: arrays[name] for name in OWN_COLUMNS}
    return Candidates(documents=documents, **own, **values)  # type: ignore[arg-type]


def joined(parts: list[Candidates], shards: range) -> Candidates:
    """One part of many, by their shards; `parts` is emptied, so that each column is freed once it is joined.

    Raises:
        ValueError: The parts have not each of the shards once.
    """
    parts.sort(key=lambda part: part.first_shard)
    there = [shard for part in parts for shard in part.shards]
    if there != list(shards):
        raise ValueError(f"{len(there)} shards were read, not each of {shards} once")
    filtered: Counter[str] = Counter()
    for part in parts:
        filtered.update(part.filtered)
    num_documents = sum(part.num_documents for part in parts)
    rejects = pa.concat_tables([part.rejects for part in parts])
    columns = frozenset().union(*(part.columns for part in parts))
    arrays = [part.arrays() for part in parts]
    parts.clear()
    _number_owners(arrays)
    whole = {name: np.concatenate([part.pop(name) for part in arrays]) for name in list(arrays[0])}
    return with_arrays(
        whole,
        first_shard=shards.start,
        num_shards=len(shards),
        num_documents=num_documents,
        filtered=dict(filtered),
        rejects=rejects,
        columns=columns,
    )


def _number_owners(parts: Sequence[dict[str, np.ndarray]]) -> None:
    first = 0
    for part in parts:
        part["later_owner"] = part["later_owner"] + first
        first += len(part["is_held_out"])
