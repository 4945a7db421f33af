"""The images that a run was trained on, streamed from the latents of its mixture a row group at a time.

Axes: d = documents of all sources in the order of their shards, n = images of a row group, c h w = latent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from transfusion.artifacts.artifact import Artifact, verified
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.mixture import References, read_mixture
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.ingest.index import read_shard_index, shard_entries, shard_ids
from transfusion.package.format import LineageEntry

TRAIN = "transfusion.train"


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Some that were read together."""

    source: str
    keys: list[str]
    """Of their documents."""
    image_indices: list[int]
    """Their places among the images of these."""
    means: Float[Tensor, "n c h w"]
    """Of their posteriors, raw."""


def training_images(mixture: Artifact, *, steps: int, max_images: int) -> Iterator[TrainingImages]:
    """Every image of the documents that the first steps of a plan hold, once, by source and shard.

    Args:
        max_images: Where there are more, so many of them, evenly spaced over all shards.
    """
    shards = _shards(mixture)
    seen = _documents_of(mixture, shards, steps=steps)
    with_images = [shard for shard in shards if shard.latents is not None]
    edges = np.cumsum([0, *(len(_rows(mixture, shard, seen)) for shard in with_images)]).tolist()
    total, wanted = edges[-1], min(edges[-1], max_images)
    for shard, start, end in zip(with_images, edges[:-1], edges[1:], strict=True):
        # Image number i of those wanted is number i x total // wanted of all: which are of this shard?
        first, last = (-(-edge * wanted // total) if total else 0 for edge in (start, end))
        chosen = np.arange(first, last) * total // max(wanted, 1) - start
        if len(chosen):
            yield from _read(mixture, shard, _rows(mixture, shard, seen)[chosen])


def trained_steps(lineage: Sequence[LineageEntry], mixture: Artifact) -> int:
    """Steps of a plan that a model saw, by its lineage; all of them where that does not say."""
    steps = read_mixture(mixture).steps
    for entry in lineage:
        if entry.uses == TRAIN and entry.inputs.get("mixture") == mixture.manifest.fingerprint:
            if entry.config.get("repeat_first_step"):
                return 1
            given = entry.config.get("steps")
            return min(steps, given) if isinstance(given, int) else steps
    return steps


@dataclass(frozen=True, kw_only=True)
class _Shard:
    source: str
    number: int
    """As in `References`."""
    tokens: FileEntry
    """Its index, as of the latents."""
    latent_index: FileEntry | None
    latents: FileEntry | None
    first_document: int
    """Among those of all shards."""


def _shards(mixture: Artifact) -> list[_Shard]:
    found: list[_Shard] = []
    documents = 0
    for name, source in read_mixture(mixture).sources.items():
        tokens = mixture.input(source.tokens)
        latents = mixture.input(source.latents) if source.latents else None
        rows = row_entries(latents) if latents else {}
        entries = zip(shard_ids(tokens, latents), shard_entries(tokens, latents), strict=True)
        for number, (shard_id, (token_index, latent_index)) in enumerate(entries):
            found.append(
                _Shard(
                    source=name,
                    number=source.first_shard + number,
                    tokens=token_index,
                    latent_index=latent_index,
                    latents=rows.get(shard_id),
                    first_document=documents,
                )
            )
            documents += _num_rows(token_index)
    return found


def _documents_of(
    mixture: Artifact, shards: Sequence[_Shard], *, steps: int
) -> Bool[np.ndarray, " d"]:
    """Which documents the first steps of a plan hold: a byte each, whatever the length of the plan."""
    seen = np.zeros(sum(_num_rows(shard.tokens) for shard in shards), bool)
    first = np.zeros(max((shard.number for shard in shards), default=0) + 1, np.int64)
    for shard in shards:
        first[shard.number] = shard.first_document
    for entry in mixture.manifest.content.files:
        if entry.name.startswith("train/"):
            table = load_table(mixture.store, entry, ["step", "references"])
            kept = table.filter(pc.field("step") < steps)["references"].to_pylist()
            words = np.frombuffer(b"".join(kept), "<u8").reshape(-1, 2)
            pieces = References.from_words(words)
            seen[first[pieces.shard] + pieces.row] = True
    return seen


def _rows(
    mixture: Artifact, shard: _Shard, seen: Bool[np.ndarray, " d"]
) -> Int64[np.ndarray, " i"]:
    """Rows of a shard's latents that are of documents which were seen."""
    index = read_shard_index(mixture.store, shard.tokens, shard.latent_index)
    own = seen[shard.first_document : shard.first_document + len(index.first_image)]
    documents = np.flatnonzero(own & (index.first_image >= 0))
    counts = index.images[documents].astype(np.int64)
    # Of each document its first row, and those behind it.
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(np.repeat(index.first_image[documents].astype(np.int64), counts) + within)


def _read(
    mixture: Artifact, shard: _Shard, rows: Int64[np.ndarray, " i"]
) -> Iterator[TrainingImages]:
    assert shard.latents is not None
    plan = read_mixture(mixture)
    shape = (plan.latent_channels, plan.latent_height, plan.latent_width)
    place = verified(mixture.store, shard.latents)
    with pq.ParquetFile(place, memory_map=True, page_checksum_verification=True) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            own = rows[(rows >= start) & (rows < end)] - start
            start = end
            if len(own):
                table = file.read_row_group(group, columns=["key", "image_index", "mean"]).take(own)
                halves = np.frombuffer(b"".join(table["mean"].to_pylist()), "<f2")
                yield TrainingImages(
                    source=shard.source,
                    keys=table["key"].to_pylist(),
                    image_indices=table["image_index"].to_pylist(),
                    means=torch.from_numpy(halves.reshape(-1, *shape).astype(np.float32)),
                )


def _num_rows(entry: FileEntry) -> int:
    assert entry.rows is not None, entry.name
    return entry.rows
