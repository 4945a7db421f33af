"""Reads sources in tests as a later stage does, and makes small pictures."""

import importlib
import io
import json
from typing import Any

from PIL import Image as Picture

from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.sources.source import SOURCES, ShardDescriptor


def rows_of(source: str, **config: Any) -> list[Document | Rejected]:
    """Every row of a source, through descriptors that were written and read back."""
    module = importlib.import_module(SOURCES[source])
    made = module.STAGE.config.model_validate_json(json.dumps(config))
    return [
        row
        for shard in module.list_shards(made)
        for row in module.read(
            made, ShardDescriptor.from_json(json.loads(json.dumps(shard.to_json())))
        )
    ]


def documents_of(source: str, **config: Any) -> list[Document]:
    """The same, where nothing may be rejected."""
    rows = rows_of(source, **config)
    rejected = [row for row in rows if isinstance(row, Rejected)]
    assert not rejected, rejected[:3]
    return [row for row in rows if isinstance(row, Document)]


def content(document: Document) -> tuple[str | bytes, ...]:
    """What a document shows: its texts and its images' bytes, in their order."""
    return tuple(s.text if isinstance(s, Text) else s.data for s in document.segments)


def outcomes(source: str, **config: Any) -> dict[str, tuple[str | bytes, ...] | str]:
    """By key: what a document shows, or the reason in brackets. A key that comes twice is a failure."""
    found: dict[str, tuple[str | bytes, ...] | str] = {}
    for row in rows_of(source, **config):
        assert row.key not in found, row.key
        found[row.key] = f"[{row.reason}]" if isinstance(row, Rejected) else content(row)
    return found


def names(document: Document) -> list[str]:
    """What its images are called."""
    return [segment.name for segment in document.segments if isinstance(segment, Image)]


def picture(number: int, kind: str = "PNG") -> bytes:
    """A small image file that differs from every other number's."""
    made = io.BytesIO()
    color = (number % 256, number // 256 % 256, 40)
    Picture.new("RGB", (24, 16), color).save(made, kind)
    return made.getvalue()
