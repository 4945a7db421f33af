"""Rows of a Parquet file as plain values, a few at a time: memory is bounded by the batch, not by the file.

Page checksums are verified. Where a row group cannot be read on, each of its remaining rows is rejected
(`broken_parquet`) and the next group is read; a value that has no plain form (text that is no UTF-8, a date beyond
the calendar) rejects its row (`unreadable_value`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.documents import Rejected
from data_pipelines.sources.lines import of_the_disk
from data_pipelines.sources.row_files import Row
from transfusion.errors import ArtifactError

BATCH_BYTES = 32 * 2**20
"""Decoded bytes of a batch, on average."""

_MOST_ROWS = 1024
_BUFFER_BYTES = 4 * 2**20
"""Read at once of each column: a row group of gigabytes is never held whole."""

UNREADABLE = (pa.ArrowException, ValueError, OverflowError, LookupError)
"""What pyarrow raises on bytes that are no Parquet, and on values that Python cannot hold; also OSError."""


def read_parquet_rows(
    stream: BinaryIO, key: str, *, url: str, columns: Sequence[str]
) -> Iterator[Row | Rejected]:
    """The rows of a file, with these columns alone.

    Args:
        url: The file's address, for messages.

    Raises:
        ArtifactError: It is no Parquet file, lacks a column, or its columns do not fit together.
        OSError: The disk cannot be read.
    """
    with open_parquet(stream, url) as file:
        _check(file.schema_arrow.names, url=url, columns=columns)
        first = 0
        for number, group in enumerate(row_groups(file, url)):
            batches = file.iter_batches(
                batch_size=group.rows_per_batch, row_groups=[number], columns=columns
            )
            yield from _read_group(
                batches,
                key,
                where=f"{url}: row group {number}",
                first=first,
                end=first + group.num_rows,
            )
            first += group.num_rows


def column_types(stream: BinaryIO, *, url: str) -> dict[str, str]:
    """The names and types of a file's columns.

    Raises:
        ArtifactError: It is no Parquet file.
    """
    with open_parquet(stream, url) as file:
        return {field.name: str(field.type) for field in file.schema_arrow}


class NoParquetError(ArtifactError):
    """The bytes are no Parquet file."""


class Group(NamedTuple):
    """A row group, as the footer has it."""

    num_rows: int
    rows_per_batch: int


@contextmanager
def _as_broken(url: str) -> Iterator[None]:
    """Whatever is raised on reading a footer says that the file is broken."""
    try:
        yield
    except (*UNREADABLE, OSError) as error:
        if of_the_disk(error):
            raise
        raise NoParquetError(f"{url}: is no readable Parquet file: {_told(error)}") from error


def open_parquet(stream: BinaryIO, url: str) -> pq.ParquetFile:
    """The file, with its page checksums to be verified.

    Raises:
        NoParquetError: It is no Parquet file.
    """
    with _as_broken(url):
        file = pq.ParquetFile(stream, page_checksum_verification=True, buffer_size=_BUFFER_BYTES)
        # Converted when it is asked for, here first.
        assert file.schema_arrow is not None
        return file


def _check(names: list[str], *, url: str, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise ArtifactError(
            f"{url}: there is no column {' and none '.join(map(repr, missing))}; there are {', '.join(names)}; "
            "name yours in the source's config"
        )
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise ArtifactError(f"{url}: two columns are called {twice[0]!r}; rename one")


def row_groups(file: pq.ParquetFile, url: str) -> list[Group]:
    """What the footer says of the row groups.

    Columns are not asked: of a damaged footer pyarrow 26 ends the process there (an uncaught C++ exception).

    Raises:
        NoParquetError: It contradicts itself.
    """
    groups = []
    with _as_broken(url):
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            mean = max(1, group.total_byte_size // max(1, group.num_rows))
            most = max(1, min(_MOST_ROWS, BATCH_BYTES // mean))
            groups.append(Group(group.num_rows, most))
        if file.metadata.num_rows != sum(group.num_rows for group in groups):
            raise ValueError("the footer contradicts itself")
    return groups


def _read_group(
    batches: Iterator[pa.RecordBatch], key: str, *, where: str, first: int, end: int
) -> Iterator[Row | Rejected]:
    """The rows of one row group, which have the numbers from `first` up to `end`.

    Raises:
        ArtifactError: There are fewer than the footer says, or the columns differ in length.
    """
    number = first
    try:
        for batch in batches:
            for values in _plain(batch):
                row = f"{key}:{number}"
                number += 1
                if isinstance(values, str):
                    yield Rejected(row, "unreadable_value", values)
                else:
                    yield Row(row, values)
    except OSError as error:
        if of_the_disk(error):
            raise
        for lost in range(number, end):
            detail = f"from row {number} to {end - 1}: {_told(error)}"
            yield Rejected(f"{key}:{lost}", "broken_parquet", detail)
    except pa.ArrowException as error:
        raise shifted(where, _told(error)) from error
    else:
        if number != end:
            raise shifted(where, f"{number - first} rows of {end - first}")


def shifted(where: str, found: str) -> ArtifactError:
    """A damaged page header makes a reader pass over the page: that column's rows no longer meet the others'."""
    return ArtifactError(
        f"{where} is damaged ({found}): columns may be shifted against each other, and none of its rows can be "
        "trusted; write the file anew"
    )


def _plain(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as plain values, or what is wrong with one."""
    try:
        rows = batch.to_pylist()
    except UNREADABLE:
        yield from (_plain_row(batch, at) for at in range(batch.num_rows))
    else:
        yield from rows


def _plain_row(batch: pa.RecordBatch, at: int) -> dict[str, Any] | str:
    try:
        (values,) = batch.slice(at, 1).to_pylist()
    except UNREADABLE as error:
        return _told(error)
    return dict(values)


def _told(error: BaseException) -> str:
    shown = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {shown}".encode("utf-8", "backslashreplace").decode()
