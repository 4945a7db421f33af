"""Parquet shards: written whole to memory, checked, and only then stored under their sha256.

An exception inside an open `ParquetWriter` still leaves a readable, short file; so nothing is ever written
to a store through one.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transfusion.artifacts.artifact import verified
from transfusion.artifacts.manifest import FileEntry
from transfusion.errors import ArtifactError
from transfusion.storage.store import Store

ROWS_PER_GROUP = 512
"""Rows in a row group: a partial read costs a few megabytes of latents, not a shard."""


def table_digest(table: pa.Table) -> str:
    """Digest of the logical rows: names, types and values, whatever the chunking or the file's packing."""
    columns = [_wide(column) for column in table.columns]
    fields = zip(table.schema.remove_metadata(), columns, strict=True)
    flat = pa.Table.from_arrays(
        [
            pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
            for column in columns
        ],
        schema=pa.schema([field.with_type(column.type) for field, column in fields]),
    )
    digest = hashlib.sha256()
    with pa.ipc.new_stream(_Hashing(digest), flat.schema) as stream:
        stream.write_table(flat, max_chunksize=1 << 20)
    return digest.hexdigest()


def _wide(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that one array can hold: 32-bit offsets end at 2 GiB."""
    wide = {pa.binary(): pa.large_binary(), pa.string(): pa.large_string()}.get(column.type)
    if wide is None or column.nbytes < _MOST_NARROW_BYTES:
        return column
    # The values' own bytes: those of the offsets depend on the chunks, and the digest must not.
    size_bytes = pc.sum(pc.cast(pc.binary_length(column), pa.int64())).as_py() or 0
    return column.cast(wide) if size_bytes >= _MOST_NARROW_BYTES else column


_MOST_NARROW_BYTES = 2**31 - 2**24


class _Hashing(io.RawIOBase):
    """A file that only hashes what is written to it."""

    def __init__(self, digest: "hashlib._Hash") -> None:
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        # pyarrow hands over buffers of its own kind, zero-copy.
        self._digest.update(data)
        return memoryview(data).nbytes


def parquet_bytes(table: pa.Table, *, raw_columns: Sequence[str] = ()) -> bytes:
    """A Parquet file with page checksums.

    Args:
        raw_columns: Binary columns of noise, such as latents: kept uncompressed and without dictionary or
            statistics, which reads ten times faster than lists and costs at most a sixth of the size.
    """
    raw = set(raw_columns)
    others = [name for name in table.column_names if name not in raw]
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression={name: "none" if name in raw else "zstd" for name in table.column_names},
        use_dictionary=False,
        write_statistics=others,
        write_page_checksum=True,
    )
    data = sink.getvalue()
    rows = pq.read_metadata(io.BytesIO(data)).num_rows
    assert rows == table.num_rows, (rows, table.num_rows)
    return data


def store_table(
    store: Store, folder: str, name: str, table: pa.Table, *, raw_columns: Sequence[str] = ()
) -> FileEntry:
    """Stores a table as `folder/<2 digits>/<sha256>.parquet`; storing it twice is storing it once."""
    data = parquet_bytes(table, raw_columns=raw_columns)
    sha256 = hashlib.sha256(data).hexdigest()
    # No folder grows without bound: servers over a disk list a large one anew for every page.
    path = f"{folder}/{sha256[:2]}/{sha256}.parquet"
    if store.size(path) != len(data):
        store.write(path, data)
    return FileEntry(
        name=name,
        path=path,
        sha256=sha256,
        bytes=len(data),
        rows=table.num_rows,
        digest=table_digest(table),
    )


def load_table(store: Store, entry: FileEntry, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a verified shard, memory-mapped where it is local.

    Raises:
        ArtifactError: The file is gone or altered, or has another number of rows than was committed.
    """
    place = verified(store, entry)
    table = pq.read_table(
        place,
        columns=list(columns) if columns else None,
        memory_map=True,
        page_checksum_verification=True,
    )
    if table.num_rows != entry.rows:
        raise ArtifactError(
            f"{store.url(entry.path)}: has {table.num_rows} rows, committed were {entry.rows}"
        )
    return table


def read_row_group(
    store: Store,
    entry: FileEntry,
    group: int,
    columns: Sequence[str],
    *,
    open_file: Callable[[], pq.ParquetFile] | None = None,
) -> pa.Table:
    """Reads `ROWS_PER_GROUP` rows of a shard, fewer at its end.

    Args:
        open_file: Opens it in another way than from a verified file.

    Raises:
        ArtifactError: The file is gone or altered.
    """
    try:
        with open_file() if open_file else _open_verified(store, entry) as file:
            return file.read_row_group(group, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(
            f"{store.url(entry.path)}: row group {group} cannot be read: {error}: the file was altered or cut "
            "short while it was in use; delete it and run its stage again"
        ) from error


def _open_verified(store: Store, entry: FileEntry) -> pq.ParquetFile:
    return pq.ParquetFile(verified(store, entry), memory_map=True, page_checksum_verification=True)
