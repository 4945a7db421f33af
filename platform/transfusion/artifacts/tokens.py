"""Kind `tokens`: documents as token ids, one row a document, sorted by key.

Metadata: `num_pieces`, the pieces of the tokenizer; ids of the special tokens follow them. Where images are tokens
too, BOI and EOI around `code_height` x `code_width` codes, also `num_codes`, which follow the special tokens, and
`autoencoder`, the digest of what made them. What a source knows of a document (its score, language, licence)
stands in the index table alone, as columns `meta.<name>`.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from transfusion.config import JSON

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
"""The columns from which a mixture is planned, beside those of the metadata."""

META = "meta."
"""What the names of metadata columns begin with."""

MAX_META_COLUMNS = 256
"""Of a shard: the names that most documents have. More are not known from data, but from mistakes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One tokenized document."""

    key: str
    layout: str
    segments: tuple[Int32[np.ndarray, " _"], ...]
    """Ids of the text segments, in order."""
    content: bytes
    num_bytes: int
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    """Goes to the index; what is read back from rows has none."""


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


def index_table(rows: Sequence[TokenRow]) -> pa.Table:
    """The columns from which a mixture is planned, sorted by key: lengths, and the scalars of the metadata.

    A metadata column has the one type that holds all its values in these rows: bool, int64, float64, else text.
    Other shards may have another, or lack the column.
    """
    ordered = sorted(rows, key=lambda row: row.key)
    table = tokens_table(ordered).select(list(TOKENS_INDEX))
    scalars = [
        {_encodable(name): value for name, value in row.metadata.items() if _is_scalar(value)}
        for row in ordered
    ]
    found = Counter(name for values in scalars for name in values)
    # The most frequent, and among equals by name: the same choice in every run.
    kept = sorted(found, key=lambda name: (-found[name], name))[:MAX_META_COLUMNS]
    for name in sorted(kept):
        table = table.append_column(META + name, _column([values.get(name) for values in scalars]))
    return table


def _column(scalars: Sequence[JSON]) -> pa.Array:
    kinds = {type(value) for value in scalars if value is not None}
    if kinds == {bool}:
        return pa.array(scalars, pa.bool_())
    if kinds == {int} and all(-(2**63) <= v < 2**63 for v in scalars if isinstance(v, int)):
        return pa.array(scalars, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if v is None else _float(v) for v in scalars], pa.float64())
    # Text as it is, other values as JSON writes them.
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in scalars]
    return pa.array([None if text is None else _encodable(text) for text in texts], pa.string())


def _is_scalar(value: JSON) -> bool:
    return isinstance(value, bool | int | float | str)


def _float(value: JSON) -> float:
    assert isinstance(value, int | float)
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _encodable(text: str) -> str:
    """Text that UTF-8 can hold: JSON may spell lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


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
