"""What a plan needs to know of the documents of a shard, from the index tables of its tokens and latents.

Axes: d = documents, in the order of the tokens' rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int32, UInt8, UInt64

from transfusion.artifacts.artifact import Artifact, verified
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.shards import index_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import TOKENS_INDEX
from transfusion.errors import ArtifactError
from transfusion.storage.store import Store

_LATENT_COLUMNS = ("key", "image_index", "sha256")


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The documents of one shard."""

    tokens: pa.Table
    """The index of the tokens: what always is in it, and the further columns that were asked for and are there."""
    latents: pa.Table | None
    """The same of the latents, a row an image."""
    columns: frozenset[str]
    """All columns that the two have, read or not."""
    keys: pa.ChunkedArray
    text_tokens: Int32[np.ndarray, " d"]
    images: Int32[np.ndarray, " d"]
    first_image: Int32[np.ndarray, " d"]
    """Row of its first image among the latents; -1 where there is none, or where one is missing."""
    is_pair: Bool[np.ndarray, " d"]
    """One text and one image, whose order is drawn."""
    text_content: UInt8[np.ndarray, "d 32"]
    """sha256 of the text."""
    content: UInt8[np.ndarray, "d 32"]
    """sha256 of the first image, else of the text: by it documents are held out."""
    identity: UInt64[np.ndarray, " d"]
    """Follows from text and image: what a document's draws depend on, wherever it lies."""


def read_shard_index(
    store: Store, tokens: FileEntry, latents: FileEntry | None, further: Sequence[str] = ()
) -> ShardIndex:
    """Joins the tokens of a shard with its latents by key.

    Args:
        further: Columns to read as well, from whichever of the two has them.
    """
    table, columns = _read(store, tokens, TOKENS_INDEX, further)
    images = pc.count_substring(table["layout"], "i").to_numpy().astype(np.int32)
    text_content = _digests(table["content"])
    content = text_content.copy()
    identity = np.ascontiguousarray(content[:, :8]).view("<u8")[:, 0].copy()
    first_image = np.full(table.num_rows, -1, np.int32)
    found = None
    if latents is not None:
        found, more = _read(store, latents, _LATENT_COLUMNS, further)
        columns |= more
        first_image = _first_images(table["key"], images, found["key"])
        if len(found):
            digests = _digests(found["sha256"])
            has_image = first_image >= 0
            of_image = digests[first_image[has_image]]
            content[has_image] = of_image
            words = np.ascontiguousarray(of_image[:, 8:16]).view("<u8")[:, 0]
            identity[has_image] ^= words
    return ShardIndex(
        tokens=table,
        latents=found,
        columns=frozenset(columns),
        keys=table["key"],
        text_tokens=_sums(table["lengths"]),
        images=images,
        first_image=first_image,
        is_pair=pc.is_in(table["layout"], pa.array(["ti", "it"])).to_numpy().astype(bool),
        text_content=text_content,
        content=content,
        identity=identity,
    )


def shard_entries(
    tokens: Artifact, latents: Artifact | None
) -> list[tuple[FileEntry, FileEntry | None]]:
    """Index files of tokens and latents, shard by shard.

    Raises:
        ArtifactError: The two were not made from the same listing.
    """
    token_entries = index_entries(tokens)
    ids = shard_ids(tokens, latents)
    if latents is None:
        return [(token_entries[shard_id], None) for shard_id in ids]
    latent_entries = index_entries(latents)
    missing = [shard_id for shard_id in ids if shard_id not in latent_entries]
    if missing:
        raise ArtifactError(
            f"{tokens.store.url(tokens.path)} and {latents.store.url(latents.path)}: "
            f"{len(missing)} shards of the tokens have no latents; make both from the same listing"
        )
    return [(token_entries[shard_id], latent_entries[shard_id]) for shard_id in ids]


def shard_ids(tokens: Artifact, latents: Artifact | None) -> list[str]:
    """The shards of a source as a plan numbers them: without those that the latents had to set aside."""
    gone = latents.metadata.get("quarantined", {}) if latents is not None else {}
    return [shard_id for shard_id in index_entries(tokens) if shard_id not in gone]


def perceptual_hashes(
    latents: pa.Table, where: str
) -> tuple[UInt64[np.ndarray, " i"], Bool[np.ndarray, " i"]]:
    """Of each image, and whether it is known: latents that were taken in have none.

    Raises:
        ArtifactError: The latents were made before there were any.
    """
    if "phash" not in latents.column_names:
        raise ArtifactError(f"{where}: has no perceptual hashes of its images; encode them again")
    column = latents["phash"]
    return column.fill_null(0).to_numpy(), column.is_valid().to_numpy().astype(bool)


def text_behind_images(tokens: pa.Table) -> Int32[np.ndarray, " d"]:
    """Tokens behind the last image of each document; all of them where there is none."""
    layouts = tokens["layout"].combine_chunks()
    shorter = pc.utf8_rtrim(layouts, characters="t")
    behind = pc.subtract(pc.utf8_length(layouts), pc.utf8_length(shorter)).to_numpy()
    return _sums(tokens["lengths"], behind)


def digest_words(column: pa.ChunkedArray) -> UInt64[np.ndarray, " d"]:
    """The first eight bytes of sha256 digests, as numbers."""
    return np.ascontiguousarray(_digests(column)[:, :8]).view("<u8")[:, 0]


def _read(
    store: Store, entry: FileEntry, always: Sequence[str], further: Sequence[str]
) -> tuple[pa.Table, set[str]]:
    there = set(pq.read_schema(verified(store, entry)).names)
    wanted = [*always, *(name for name in further if name in there and name not in always)]
    return load_table(store, entry, wanted), there


def _first_images(
    keys: pa.ChunkedArray, images: Int32[np.ndarray, " d"], latent_keys: pa.ChunkedArray
) -> Int32[np.ndarray, " d"]:
    """Row of each document's first latent; -1 unless all its images are there."""
    encoded = latent_keys.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    # Rows are sorted by key, so those of a document are side by side.
    distinct, first, counts = np.unique(codes, return_index=True, return_counts=True)
    if not len(distinct):
        return np.full(len(keys), -1, np.int32)
    place = pc.index_in(keys, encoded.dictionary).combine_chunks()
    found = place.fill_null(-1).to_numpy()
    complete = (found >= 0) & (images > 0) & (counts[found] == images)
    return np.where(complete, first[found], -1).astype(np.int32)


def _digests(column: pa.ChunkedArray) -> UInt8[np.ndarray, "d 32"]:
    if not len(column):
        return np.zeros((0, 32), np.uint8)
    array = column.combine_chunks()
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data.reshape(-1, 32)[array.offset : array.offset + len(array)].copy()


def _sums(
    lists: pa.ChunkedArray, last: Int32[np.ndarray, " d"] | None = None
) -> Int32[np.ndarray, " d"]:
    """Sums of lists; of so many of their last numbers, where `last` says how many."""
    array = lists.combine_chunks()
    totals = np.concatenate([[0], np.cumsum(array.values.to_numpy(), dtype=np.int64)])
    offsets = array.offsets.to_numpy()
    first = offsets[:-1] if last is None else offsets[1:] - last
    return (totals[offsets[1:]] - totals[first]).astype(np.int32)
