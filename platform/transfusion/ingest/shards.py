"""Rows of token and latent shards, read a row group at a time and kept as long as there is room."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.utils.dlpack
from jaxtyping import Float16, Int32, Int64, UInt64
from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.shards import index_entries, row_entries
from transfusion.artifacts.tables import ROWS_PER_GROUP, read_row_group
from transfusion.ingest.cache import Cache
from transfusion.ingest.images import LatentGroup
from transfusion.ingest.index import read_shard_index, shard_ids
from transfusion.storage.ranges import RangeFile
from transfusion.storage.store import Store


@dataclass(frozen=True)
class TokenGroup:
    """Rows of a token shard that were read together."""

    keys: pa.Array
    layouts: list[str]
    lengths: Int32[np.ndarray, " k"]
    length_offsets: Int32[np.ndarray, " d"]
    ids: Int32[np.ndarray, " t"]
    id_offsets: Int64[np.ndarray, " d"]

    def segments(self, row: int) -> list[Int32[np.ndarray, " _"]]:
        """Ids of each text segment of a document."""
        lengths = self.lengths[self.length_offsets[row] : self.length_offsets[row + 1]]
        start = self.id_offsets[row]
        found = []
        for length in lengths.tolist():
            found.append(self.ids[start : start + length])
            start += length
        return found


class ShardImages(NamedTuple):
    """What the draws and latents of a shard's documents are found by."""

    first: Int32[np.ndarray, " d"]
    """Row of a document's first latent."""
    identity: UInt64[np.ndarray, " d"]
    """What the draws of a document depend on."""


class SourceReader:
    """The rows of one source of a mixture, by shard and row."""

    def __init__(
        self,
        name: str,
        tokens: Artifact,
        latents: Artifact | None,
        *,
        latent_shape: tuple[int, int, int],
        cache: Cache,
        by_range: bool = False,
    ) -> None:
        """Opens a source.

        Args:
            by_range: Row groups are fetched by themselves rather than with their shard, whose sha256 then stays
                unknown: what was altered shows in the checksums of pages.
        """
        self._name, self._cache, self._shape = name, cache, latent_shape
        self._by_range = by_range
        self._store: Store = tokens.store
        ids = shard_ids(tokens, latents)
        self.num_shards = len(ids)
        token_rows, token_index = row_entries(tokens), index_entries(tokens)
        self._tokens = [token_rows[shard_id] for shard_id in ids]
        self._token_index = [token_index[shard_id] for shard_id in ids]
        self._latents: list[FileEntry] = []
        self._latent_index: list[FileEntry] = []
        if latents is not None:
            latent_rows, latent_index = row_entries(latents), index_entries(latents)
            self._latents = [latent_rows[shard_id] for shard_id in ids]
            self._latent_index = [latent_index[shard_id] for shard_id in ids]

    def tokens(self, shard: int, row: int) -> tuple[TokenGroup, int]:
        """The group with that row, and its place in the group."""
        group, at = divmod(row, ROWS_PER_GROUP)
        load = partial(self._load_tokens, shard, group)
        return self._cache.get((self._name, "tokens", shard, group), load), at

    def latents(self, shard: int, row: int) -> tuple[LatentGroup, int]:
        """The group with that row, and its place in the group."""
        group, at = divmod(row, ROWS_PER_GROUP)
        load = partial(self._load_latents, shard, group)
        return self._cache.get((self._name, "latents", shard, group), load), at

    def images(self, shard: int) -> ShardImages:
        """Where the latents of a shard's documents are."""
        return self._cache.get((self._name, "images", shard), partial(self._load_images, shard))

    def _load_tokens(self, shard: int, group: int) -> tuple[TokenGroup, int]:
        table = self._read(self._tokens[shard], group, ["key", "layout", "lengths", "ids"])
        return _token_group(table), int(table.nbytes)

    def _load_latents(self, shard: int, group: int) -> tuple[LatentGroup, int]:
        table = self._read(self._latents[shard], group, ["mean", "std"])
        loaded = LatentGroup(*(_halves(table[name], self._shape) for name in ("mean", "std")))
        return loaded, int(table.nbytes)

    def _load_images(self, shard: int) -> tuple[ShardImages, int]:
        latents = self._latent_index[shard] if self._latent_index else None
        index = read_shard_index(self._store, self._token_index[shard], latents)
        found = ShardImages(index.first_image, index.identity)
        return found, found.first.nbytes + found.identity.nbytes

    def _read(self, entry: FileEntry, group: int, columns: list[str]) -> pa.Table:
        ranged = partial(self._open_by_range, entry) if self._by_range else None
        return read_row_group(self._store, entry, group, columns, open_file=ranged)

    def _open_by_range(self, entry: FileEntry) -> pq.ParquetFile:
        ranges = RangeFile(self._store, entry.path, size_bytes=entry.bytes)

        def load() -> tuple[pq.FileMetaData, int]:
            found = pq.read_metadata(ranges)
            return found, found.serialized_size

        # Neighbouring columns come in one request.
        return pq.ParquetFile(
            ranges,
            metadata=self._cache.get((self._name, "footer", entry.path), load),
            pre_buffer=True,
            page_checksum_verification=True,
        )


def row_bytes(artifacts: Iterable[Artifact | None]) -> int:
    """What the shards of some artifacts take, without their indexes."""
    return sum(
        entry.bytes
        for artifact in artifacts
        if artifact is not None
        for entry in row_entries(artifact).values()
    )


def _token_group(table: pa.Table) -> TokenGroup:
    lengths = _whole(table["lengths"])
    data, offsets = _binary(table["ids"])
    return TokenGroup(
        keys=_whole(table["key"]),
        layouts=table["layout"].to_pylist(),
        lengths=lengths.values.to_numpy(),
        length_offsets=lengths.offsets.to_numpy(),
        ids=data.view("<i4"),
        id_offsets=offsets // 4,
    )


def _halves(column: pa.ChunkedArray, shape: tuple[int, int, int]) -> Float16[Tensor, "k c h w"]:
    data, _ = _binary(column)
    # Through Arrow, whose memory torch takes as it is; numpy's would be read-only, of which torch warns.
    halves = pa.Array.from_buffers(pa.float16(), len(data) // 2, [None, pa.py_buffer(data)])
    return torch.utils.dlpack.from_dlpack(halves).view(-1, *shape)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    # Combining copies even what is one piece, and megabytes of fresh memory cost more than the read.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _binary(column: pa.ChunkedArray) -> tuple[Any, Int64[np.ndarray, " d"]]:
    """The bytes of all values, one after the other, and where each begins."""
    array = _whole(column)
    raw_offsets = np.frombuffer(array.buffers()[1], "<i4")
    offsets = raw_offsets[array.offset : array.offset + len(array) + 1].astype(np.int64)
    buffer = array.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]
