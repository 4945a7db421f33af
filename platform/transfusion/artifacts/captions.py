"""Kind `captions`: what a model says of the images of a listing, one row a document, sorted by key.

Metadata: `model`, the digest of the package that said it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

CAPTIONS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("finish_reason", pa.string()),  # 'stop', or 'length' where it was cut
        ("seed", pa.int64()),  # with which the sampler says the same again
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """The caption of a document of one image."""

    key: str
    caption: str
    finish_reason: str
    seed: int


def captions_table(rows: Sequence[CaptionRow]) -> pa.Table:
    """The rows of a shard, sorted by key."""
    ordered = sorted(rows, key=lambda row: row.key)
    columns = {name: [getattr(row, name) for row in ordered] for name in CAPTIONS_SCHEMA.names}
    return pa.table(columns, schema=CAPTIONS_SCHEMA)


def caption_rows(table: pa.Table) -> list[CaptionRow]:
    """The captions of a table that has all columns."""
    return [CaptionRow(**record) for record in table.to_pylist()]
