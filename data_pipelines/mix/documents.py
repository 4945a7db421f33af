"""The documents of a mixture as columns of numbers: who takes part, and how long each is.

Axes: d = documents of one source that take part.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32, Int64, UInt64

from data_pipelines.mix.config import MixConfig, MixSource
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import MAX_START
from transfusion.artifacts.shards import Reject
from transfusion.ingest.index import ShardIndex, read_shard_index, shard_entries
from transfusion.sequence.held_out import held_out
from transfusion.sequence.order import Stream

READERS = 8
"""Shards whose index is read at the same time."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Documents of one source that are packed alike."""

    shard: Int32[np.ndarray, " d"]
    row: Int32[np.ndarray, " d"]
    length: Int32[np.ndarray, " d"]
    text_tokens: Int32[np.ndarray, " d"]
    images: Int32[np.ndarray, " d"]
    is_pair: Bool[np.ndarray, " d"]
    identity: UInt64[np.ndarray, " d"]

    def __len__(self) -> int:
        return len(self.length)

    def select(self, chosen: Bool[np.ndarray, " d"]) -> "Documents":
        """Some of them, in their order."""
        return Documents(**{name: column[chosen] for name, column in vars(self).items()})

    @staticmethod
    def join(parts: "list[Documents]") -> "Documents":
        """All of them, one part after the other."""
        return Documents(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in Documents.__dataclass_fields__
            }
        )

    def stream(self, *, weight: float, num_patches: int) -> Stream:
        """What the packer sees of them."""
        # BOS..EOS has a target at every position but the last, at BOI and at a patch.
        targets = self.length - 1 - self.images * (num_patches + 1)
        return Stream(
            lengths=self.length,
            images=self.images,
            targets=targets.astype(np.int32),
            run_starts=_starts(self.shard),
            weight=weight,
            splittable=not self.images.any(),
        )


@dataclass(frozen=True, kw_only=True)
class SourceDocuments:
    """What became of the documents of a source."""

    training: Documents
    validation: Documents
    num_documents: int
    filtered: Mapping[str, int]
    rejects: list[Reject]
    num_shards: int


def read_source(
    name: str,
    source: MixSource,
    config: MixConfig,
    inputs: Mapping[str, Artifact],
    *,
    num_patches: int,
    first_shard: int,
    takedown: Collection[str],
) -> SourceDocuments:
    """Reads the lengths of a source and decides which documents take part."""
    tokens = inputs[source.tokens]
    latents = inputs[source.latents] if source.latents else None
    entries = shard_entries(tokens, latents)
    fraction = config.held_out_fraction
    if source.held_out_fraction is not None:
        fraction = source.held_out_fraction
    chooser = _Chooser(name, config, num_patches, fraction, pa.array(sorted(takedown), pa.string()))
    training, validation = [], []
    filtered: Counter[str] = Counter()
    rejects: list[Reject] = []
    num_documents = 0
    with ThreadPoolExecutor(READERS) as threads:
        indices = threads.map(lambda pair: read_shard_index(tokens.store, *pair), entries)
        for shard, index in zip(itertools.count(first_shard), indices, strict=False):
            chosen = chooser.choose(index, shard)
            num_documents += len(index.images)
            training.append(chosen.training)
            validation.append(chosen.validation)
            filtered += chosen.filtered
            rejects += chosen.rejects
    return SourceDocuments(
        training=Documents.join(training),
        validation=Documents.join(validation),
        num_documents=num_documents,
        filtered=dict(filtered),
        rejects=rejects,
        num_shards=len(entries),
    )


@dataclass(frozen=True)
class _Chosen:
    training: Documents
    validation: Documents
    filtered: "Counter[str]"
    rejects: list[Reject]


@dataclass(frozen=True)
class _Chooser:
    source: str
    config: MixConfig
    num_patches: int
    held_out_fraction: float
    takedown: pa.Array

    def choose(self, index: ShardIndex, shard: int) -> _Chosen:
        """Each document goes one way: away with a reason, to validation, or to training."""
        length = 2 + index.text_tokens.astype(np.int64)
        length += index.images * np.int64(self.num_patches + 2)
        most = np.where(index.images > 0, self.config.sequence_length, MAX_START - 1)
        left = np.ones(len(length), bool)
        filtered: Counter[str] = Counter()
        for reason, matches in (
            ("takedown", pc.is_in(index.keys, self.takedown).to_numpy().astype(bool)),
            ("image_missing", (index.images > 0) & (index.first_image < 0)),
            ("empty", (index.images == 0) & (index.text_tokens == 0)),
        ):
            filtered[reason] += int((left & matches).sum())
            left &= ~matches
        too_long = left & (length > most)
        rejects = [
            Reject(
                f"{self.source}/{index.keys[row]}",
                "too_long",
                f"{length[row]} positions, at most {most[row]}: a document with images must fit a sequence",
            )
            for row in np.flatnonzero(too_long).tolist()
        ]
        left &= ~too_long
        is_held_out = held_out(index.content, self.held_out_fraction) & left
        filtered["held_out"] += int(is_held_out.sum())
        documents = Documents(
            shard=np.full(len(length), shard, np.int32),
            row=np.arange(len(length), dtype=np.int32),
            length=np.minimum(length, MAX_START).astype(np.int32),
            text_tokens=index.text_tokens,
            images=index.images,
            is_pair=index.is_pair,
            identity=index.identity,
        )
        return _Chosen(
            documents.select(left & ~is_held_out), documents.select(is_held_out), +filtered, rejects
        )


def _starts(shard: Int32[np.ndarray, " d"]) -> Int64[np.ndarray, " k"]:
    return np.flatnonzero(np.concatenate([[True], shard[1:] != shard[:-1]])).astype(np.int64)
