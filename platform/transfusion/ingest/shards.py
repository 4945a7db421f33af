"""Rows of token and latent shards, read a row group at a time and kept as long as there is room."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Int32, Int64

from transfusion.artifacts.artifact import Artifact, verified
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.shards import index_entries, row_entries
from transfusion.artifacts.tables import ROWS_PER_GROUP
from transfusion.ingest.index import read_shard_index
from transfusion.storage.store import Store


class Cache:
    """Keeps what was used last, up to a number of bytes; shared by threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """What is kept under the key, or what `load` brings with its size in bytes."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            value, size = load()
            self._kept[key] = (value, size)
            self._bytes += size
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed
            return value


@dataclass(frozen=True)
class TokenGroup:
    """Rows of a token shard that were read together."""

    keys: list[str]
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


@dataclass(frozen=True)
class LatentGroup:
    """Rows of a latent shard that were read together."""

    mean: Float16[np.ndarray, "i c h w"]
    std: Float16[np.ndarray, "i c h w"]


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
    ) -> None:
        self._name, self._cache, self._shape = name, cache, latent_shape
        self._store: Store = tokens.store
        ids = list(row_entries(tokens))
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
        group = row // ROWS_PER_GROUP

        def load() -> tuple[TokenGroup, int]:
            table = self._read(self._tokens[shard], group, ["key", "layout", "lengths", "ids"])
            return _token_group(table), int(table.nbytes)

        return self._cache.get((self._name, "tokens", shard, group), load), row % ROWS_PER_GROUP

    def latents(self, shard: int, row: int) -> tuple[LatentGroup, int]:
        """The group with that row, and its place in the group."""
        group = row // ROWS_PER_GROUP

        def load() -> tuple[LatentGroup, int]:
            table = self._read(self._latents[shard], group, ["mean", "std"])
            loaded = LatentGroup(*(_halves(table[name], self._shape) for name in ("mean", "std")))
            return loaded, int(table.nbytes)

        return self._cache.get((self._name, "latents", shard, group), load), row % ROWS_PER_GROUP

    def first_image(self, shard: int, row: int) -> int:
        """Row of a document's first latent."""
        return int(self._index(shard)[0][row])

    def identity(self, shard: int, row: int) -> int:
        """What the draws of a document depend on."""
        return int(self._index(shard)[1][row])

    def _index(self, shard: int) -> tuple[Any, Any]:
        def load() -> tuple[Any, int]:
            latents = self._latent_index[shard] if self._latent_index else None
            index = read_shard_index(self._store, self._token_index[shard], latents)
            return (index.first_image, index.identity), 12 * len(index.identity)

        return self._cache.get((self._name, "index", shard), load)

    def _read(self, entry: FileEntry, group: int, columns: list[str]) -> pa.Table:
        place = verified(self._store, entry)
        with pq.ParquetFile(place, memory_map=True, page_checksum_verification=True) as file:
            return file.read_row_group(group, columns=columns, use_threads=False)


def _token_group(table: pa.Table) -> TokenGroup:
    lengths = table["lengths"].combine_chunks()
    data, offsets = _binary(table["ids"])
    return TokenGroup(
        keys=table["key"].to_pylist(),
        layouts=table["layout"].to_pylist(),
        lengths=lengths.values.to_numpy(),
        length_offsets=lengths.offsets.to_numpy(),
        ids=data.view("<i4"),
        id_offsets=offsets // 4,
    )


def _halves(column: pa.ChunkedArray, shape: tuple[int, int, int]) -> Float16[np.ndarray, "i c h w"]:
    data, _ = _binary(column)
    return data.view("<f2").reshape(-1, *shape)


def _binary(column: pa.ChunkedArray) -> tuple[Any, Int64[np.ndarray, " d"]]:
    """The bytes of all values, one after the other, and where each begins."""
    array = column.combine_chunks()
    raw_offsets = np.frombuffer(array.buffers()[1], "<i4")
    offsets = raw_offsets[array.offset : array.offset + len(array) + 1].astype(np.int64)
    buffer = array.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]
