"""Rows of a Parquet file as plain values, a few at a time: memory is bounded by the batch, not by the file.

Page checksums are verified. Where a row group cannot be read on, each of its remaining rows is rejected
(`broken_parquet`) and the next group is read; a value that has no plain form (text that is no UTF-8, a date beyond
the calendar) rejects its row (`unreadable_value`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.documents import Rejected
from data_pipelines.sources.row_files import Row
from transfusion.errors import ArtifactError

BATCH_BYTES = 32 * 2**20
"""Decoded bytes of a batch, on average."""

_MOST_ROWS = 1024
_BUFFER_BYTES = 4 * 2**20
"""Read at once of each column: a row group of gigabytes is never held whole."""

_UNREADABLE = (pa.ArrowException, ValueError, OverflowError, LookupError)


def read_parquet_rows(
    stream: BinaryIO, key: str, *, url: str, columns: Sequence[str]
) -> Iterator[Row | Rejected]:
    """The rows of a file, with these columns alone.

    Args:
        url: The file's address, for messages.

    Raises:
        ArtifactError: It is no Parquet file, lacks a column, or its columns do not fit together.
    """
    with _open(stream, url) as file:
        _check(file, file.schema_arrow.names, url=url, columns=columns)
        first = 0
        for group in range(file.num_row_groups):
            yield from _read_group(file, group, key, url=url, first=first, columns=columns)
            first += file.metadata.row_group(group).num_rows


def column_types(stream: BinaryIO, *, url: str) -> dict[str, str]:
    """The names and types of a file's columns.

    Raises:
        ArtifactError: It is no Parquet file.
    """
    with _open(stream, url) as file:
        return {field.name: str(field.type) for field in file.schema_arrow}


def _open(stream: BinaryIO, url: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(stream, page_checksum_verification=True, buffer_size=_BUFFER_BYTES)
        assert (
            file.schema_arrow is not None
        )  # it is converted when it is asked for, and may be broken
    except (*_UNREADABLE, OSError) as error:
        raise ArtifactError(f"{url}: is no readable Parquet file: {_told(error)}") from error
    return file


def _check(file: pq.ParquetFile, names: list[str], *, url: str, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise ArtifactError(
            f"{url}: there is no column {' and none '.join(map(repr, missing))}; there are {', '.join(names)}; "
            "name yours in the source's config"
        )
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise ArtifactError(f"{url}: two columns are called {twice[0]!r}; rename one")
    metadata = file.metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    if metadata.num_rows != sum(group.num_rows for group in groups) or any(
        group.column(at).num_values < group.num_rows
        for group in groups
        for at in range(group.num_columns)
    ):
        raise ArtifactError(f"{url}: is no readable Parquet file: its footer contradicts itself")


def _read_group(
    file: pq.ParquetFile, group: int, key: str, *, url: str, first: int, columns: Sequence[str]
) -> Iterator[Row | Rejected]:
    """The rows of one row group, the first of which has the number `first`.

    Raises:
        ArtifactError: There are fewer than the footer says, or the columns differ in length.
    """
    number, end = first, first + file.metadata.row_group(group).num_rows
    try:
        for batch in file.iter_batches(
            batch_size=_rows_per_batch(file, group, columns), row_groups=[group], columns=columns
        ):
            for values in _plain(batch):
                where = f"{key}:{number}"
                number += 1
                if isinstance(values, str):
                    yield Rejected(where, "unreadable_value", values)
                else:
                    yield Row(where, values)
    except OSError as error:
        detail = f"row group {group} cannot be read from row {number} on: {_told(error)}"
        for lost in range(number, end):
            yield Rejected(f"{key}:{lost}", "broken_parquet", detail)
    except pa.ArrowException as error:
        raise _shifted(url, group, _told(error)) from error
    else:
        if number != end:
            raise _shifted(url, group, f"{number - first} rows of {end - first}")


def _shifted(url: str, group: int, found: str) -> ArtifactError:
    """A damaged page header makes a reader pass over the page: that column's rows no longer meet the others'."""
    return ArtifactError(
        f"{url}: row group {group} is damaged ({found}): columns may be shifted against each other, and none of "
        "its rows can be trusted; write the file anew"
    )


def _rows_per_batch(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> int:
    metadata = file.metadata.row_group(group)
    size_bytes = 0
    for at in range(metadata.num_columns):
        column = metadata.column(at)
        if any(
            column.path_in_schema == c or column.path_in_schema.startswith(f"{c}.") for c in columns
        ):
            size_bytes += column.total_uncompressed_size
    mean = max(1, size_bytes // max(1, metadata.num_rows))
    return max(1, min(_MOST_ROWS, BATCH_BYTES // mean))


def _plain(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as plain values, or what is wrong with one."""
    try:
        rows = batch.to_pylist()
    except _UNREADABLE:
        yield from (_plain_row(batch, at) for at in range(batch.num_rows))
    else:
        yield from rows


def _plain_row(batch: pa.RecordBatch, at: int) -> dict[str, Any] | str:
    try:
        (values,) = batch.slice(at, 1).to_pylist()
    except _UNREADABLE as error:
        return _told(error)
    return dict(values)


def _told(error: BaseException) -> str:
    shown = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {shown}".encode("utf-8", "backslashreplace").decode()
