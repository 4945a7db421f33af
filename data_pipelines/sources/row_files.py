"""Files of rows, Parquet or JSONL, read as plain values: what sources of more than text have in common."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data_pipelines.documents import Rejected
from data_pipelines.sources.places import Place

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIXES = (".parquet",)

MAX_LINE_BYTES = 64 * 2**20
"""Longest line of a JSONL file; a longer one is a rejected row and is never held whole."""


class Row(NamedTuple):
    """One row of a file of rows."""

    where: str
    """`file:number`; lines count from 1, rows of Parquet files from 0."""

    values: dict[str, Any]


def read_rows(
    place: Place, key: str, mark: str, *, columns: Sequence[str], metadata: Sequence[str] = ()
) -> Iterator[Row | Rejected]:
    """The rows of a file in their order.

    Args:
        columns: What every row must have.
        metadata: What rows may have; a Parquet file must have a column of that name.

    Raises:
        ArtifactError: The file is gone or has changed; it is no Parquet file, or lacks a column.
    """
    url = f"{place.url}/{key}"
    with place.open(key, mark) as stream:
        if key.endswith(PARQUET_SUFFIXES):
            from data_pipelines.sources.parquet_rows import read_parquet_rows

            yield from read_parquet_rows(
                stream, key, url=url, columns=[*dict.fromkeys((*columns, *metadata))]
            )
        else:
            from data_pipelines.sources.lines import read_lines

            for line in read_lines(stream, key, max_bytes=MAX_LINE_BYTES):
                if isinstance(line, Rejected):
                    yield line
                else:
                    yield _json_row(f"{key}:{line[0]}", line[1], columns)


def _json_row(where: str, line: bytes, columns: Sequence[str]) -> Row | Rejected:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejected(where, "invalid_utf8", f"at byte {error.start}: {error.reason}")
    except (ValueError, RecursionError) as error:
        return Rejected(where, "bad_json", f"{type(error).__name__}: {error}"[:200])
    if not isinstance(values, dict):
        return Rejected(where, "bad_json", f"a {type(values).__name__}, not an object")
    for name in columns:
        if name not in values:
            there = ", ".join(values).encode("utf-8", "backslashreplace").decode()
            return Rejected(where, "missing_column", f"no {name!r}; there are {there}"[:200])
    return Row(where, values)
