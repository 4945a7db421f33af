"""Rows of text files, format by format: each row a document, or rejected with its file and line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from data_pipelines.documents import Document, Rejected, Text
from data_pipelines.sources.cells import metadata_of
from data_pipelines.sources.lines import (
    BYTE_ORDER_MARK,
    UNPACKING,
    of_the_disk,
    read_lines,
    unpacked,
)
from data_pipelines.sources.parquet_rows import (
    UNREADABLE,
    NoParquetError,
    open_parquet,
    row_groups,
    shifted,
)
from transfusion.config import JSON

_ROWS_PER_BATCH = 1024

Columns = Sequence[str] | Literal["all"]
"""Names, or all that there are."""


def read_rows(
    stream: BinaryIO,
    key: str,
    *,
    column: str | None,
    metadata: Columns = (),
    whole: bool,
    max_bytes: int,
) -> Iterator[Document | Rejected]:
    """Rows of a line-based file, plain, gzipped or in Zstandard.

    Args:
        column: Key of the text in a JSONL object; None for plain text.
        metadata: Keys of a JSONL object that go along.
        whole: Plain text only: the file is one document.
    """
    if whole and column is None:
        yield _whole(stream, key, max_bytes)
        return
    for line in read_lines(stream, key, max_bytes=max_bytes):
        if isinstance(line, Rejected):
            yield line
        elif column is None:
            yield _checked(f"{key}:{line[0]}", line[1])
        else:
            yield _json_row(f"{key}:{line[0]}", line[1], column, metadata)


def read_parquet(
    stream: BinaryIO, key: str, *, column: str, metadata: Columns = (), max_bytes: int
) -> Iterator[Document | Rejected]:
    """Rows of a Parquet file.

    Where a row group cannot be read on, each of its remaining rows is rejected and the next group is read; a file
    that is none, or has no such column of text, is one rejected row.

    Raises:
        ArtifactError: Metadata may belong to other rows than the text.
        OSError: The disk cannot be read.
    """
    try:
        file = open_parquet(stream, key)
        names, groups = file.schema_arrow.names, row_groups(file, key)
    except NoParquetError as error:
        yield Rejected(f"{key}:0", "broken_parquet", str(error))
        return
    with file:
        if column not in names:
            detail = f"no column {column!r} for {file.metadata.num_rows} rows; there are {', '.join(names)}"
            yield Rejected(key, "missing_column", detail)
            return
        kind = file.schema_arrow.field(column).type
        if not _is_text(kind):
            yield Rejected(key, "not_text", f"column {column!r} holds {kind}")
            return
        wanted = [n for n in names if n != column] if metadata == "all" else metadata
        kept = [name for name in wanted if name in names]
        first = 0
        for number, group in enumerate(groups):
            end = first + group.num_rows
            batches = file.iter_batches(
                batch_size=min(_ROWS_PER_BATCH, group.rows_per_batch),
                row_groups=[number],
                columns=list(dict.fromkeys([column, *kept])),
            )
            yield from _group(batches, key, column, kept, max_bytes, span=(first, end))
            first = end


def _group(
    batches: Iterator[pa.RecordBatch],
    key: str,
    column: str,
    kept: Sequence[str],
    max_bytes: int,
    *,
    span: tuple[int, int],
) -> Iterator[Document | Rejected]:
    """The rows of a row group, which have these numbers."""
    row, end = span
    try:
        for batch in batches:
            # As bytes: a string column may hold what is no UTF-8.
            values = batch.column(column).cast(pa.large_binary()).to_pylist()
            others = [_plain(batch.column(name)) for name in kept]
            for value, *said in zip(values, *others, strict=True):
                yield _value(f"{key}:{row}", value, max_bytes, dict(zip(kept, said, strict=True)))
                row += 1
        # pyarrow takes a page that claims fewer rows for the end of its row group.
        told, moved = "a page is damaged", row != end
    except (*UNREADABLE, OSError) as error:
        if of_the_disk(error):
            raise
        told, moved = " ".join(str(error).split())[:200], not isinstance(error, OSError)
    if moved and kept:
        raise shifted(f"{key}: the group of rows {span[0]} to {end - 1}", told)
    for lost in range(row, end):
        yield Rejected(f"{key}:{lost}", "broken_parquet", f"from row {row} to {end - 1}: {told}")


def _whole(stream: BinaryIO, key: str, max_bytes: int) -> Document | Rejected:
    try:
        data = unpacked(stream, key).read(max_bytes + len(BYTE_ORDER_MARK) + 1)
    except UNPACKING as error:
        if of_the_disk(error):
            raise
        return Rejected(f"{key}:1", "truncated", f"{type(error).__name__}: {error}"[:200])
    data = data.removeprefix(BYTE_ORDER_MARK)
    if len(data) > max_bytes:
        return Rejected(key, "too_long", f"more than {max_bytes} bytes")
    return _checked(key, data)


def _plain(column: pa.Array) -> list[Any]:
    """The values of a column; None for one that has no plain form, such as text that is no UTF-8."""
    try:
        return list(column.to_pylist())
    except (*UNREADABLE, OSError):
        return (
            [_plain(column[at : at + 1])[0] for at in range(len(column))]
            if len(column) > 1
            else [None]
        )


def _json_row(row: str, line: bytes, column: str, metadata: Columns) -> Document | Rejected:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejected(row, "invalid_utf8", _where(error))
    except (ValueError, RecursionError) as error:
        return Rejected(row, "bad_json", f"{type(error).__name__}: {error}"[:200])
    if not isinstance(value, dict):
        return Rejected(row, "bad_json", f"a {type(value).__name__}, not an object")
    if column not in value:
        there = ", ".join(value).encode("utf-8", "backslashreplace").decode()
        return Rejected(row, "missing_column", f"no {column!r}; there are {there}"[:200])
    text = value[column]
    if text is None:
        return Rejected(row, "null_text", f"{column!r} is null")
    if not isinstance(text, str):
        return Rejected(row, "not_text", f"{column!r} is a {type(text).__name__}")
    try:
        said = value if metadata == "all" else metadata_of(value, metadata)
        return _checked(row, text.encode("utf-8"), said)
    except UnicodeEncodeError as error:
        return Rejected(row, "lone_surrogate", f"at character {error.start}")


def _value(
    row: str, value: bytes | None, max_bytes: int, said: Mapping[str, Any]
) -> Document | Rejected:
    if value is None:
        return Rejected(row, "null_text", "null")
    if len(value) > max_bytes:
        return Rejected(row, "too_long", f"more than {max_bytes} bytes")
    return _checked(row, value, metadata_of(said, said))


def _checked(
    row: str, data: bytes, metadata: Mapping[str, JSON] | None = None
) -> Document | Rejected:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected(row, "invalid_utf8", _where(error))
    if "\0" in text:
        return Rejected(row, "nul_character", f"at character {text.index(chr(0))}")
    if not text.strip():
        return Rejected(row, "empty", "no character that is not white space")
    return Document(key=row, segments=(Text(text),), metadata=metadata or {})


def _where(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at byte {error.start}: {error.reason}"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
