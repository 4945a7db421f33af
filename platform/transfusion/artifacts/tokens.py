"""Kind `tokens`: documents as token ids, one row a document, sorted by key.

Metadata: `num_pieces`, the pieces of the tokenizer; ids of the special tokens follow them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

TOKENS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("layout", pa.string()),  # 't' and 'i': the segments in order
        ("lengths", pa.list_(pa.int32())),  # tokens of each text segment
        ("ids", pa.binary()),  # int32, little-endian: all text segments one after the other
        ("content", pa.binary(32)),  # sha256 of the text, segments joined by NUL
        ("num_bytes", pa.int64()),  # of the text in UTF-8: what bits per byte are counted over
    ]
)
TOKENS_RAW = ("ids", "content")
TOKENS_INDEX = ("key", "layout", "lengths", "content")
"""The columns from which a mixture is planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One tokenized document."""

    key: str
    layout: str
    segments: tuple[Int32[np.ndarray, " _"], ...]
    """Ids of the text segments, in order."""
    content: bytes
    num_bytes: int


def tokens_table(rows: Sequence[TokenRow]) -> pa.Table:
    """The rows of a shard, sorted by key."""
    ordered = sorted(rows, key=lambda row: row.key)
    ids = [b"".join(part.astype("<i4").tobytes() for part in row.segments) for row in ordered]
    return pa.table(
        {
            "key": [row.key for row in ordered],
            "layout": [row.layout for row in ordered],
            "lengths": [[len(part) for part in row.segments] for row in ordered],
            "ids": ids,
            "content": [row.content for row in ordered],
            "num_bytes": [row.num_bytes for row in ordered],
        },
        schema=TOKENS_SCHEMA,
    )


def token_rows(table: pa.Table) -> list[TokenRow]:
    """The documents of a table that has all columns."""
    rows = []
    for record in table.to_pylist():
        ids = np.frombuffer(record["ids"], "<i4")
        ends = np.cumsum(record["lengths"], dtype=np.int64)
        rows.append(
            TokenRow(
                key=record["key"],
                layout=record["layout"],
                segments=tuple(np.split(ids, ends[:-1])) if len(ends) else (),
                content=record["content"],
                num_bytes=record["num_bytes"],
            )
        )
    return rows
