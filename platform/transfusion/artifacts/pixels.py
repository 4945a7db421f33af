"""Kind `pixels`: decoded square crops, for training an autoencoder, calibration and references.

One row an image, sorted by key and index. Metadata: `image_size_px`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.config import JSON

PIXELS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_index", pa.int16()),
        ("sha256", pa.binary(32)),  # of the source bytes
        ("caption", pa.string()),  # the text of the document, segments joined by a space
        (
            "metadata",
            pa.string(),
        ),  # JSON: what the source says of the document, such as the drawn scene
        ("pixels", pa.binary()),  # uint8: h w 3
    ]
)
PIXELS_RAW = ("pixels", "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRow:
    """One decoded image."""

    key: str
    image_index: int
    sha256: bytes
    caption: str
    metadata: Mapping[str, JSON]
    pixels: UInt8[np.ndarray, "h w 3"]


def pixels_table(rows: Sequence[PixelRow]) -> pa.Table:
    """The rows of a shard, sorted by key and index."""
    ordered = sorted(rows, key=lambda row: (row.key, row.image_index))
    return pa.table(
        {
            "key": [row.key for row in ordered],
            "image_index": [row.image_index for row in ordered],
            "sha256": [row.sha256 for row in ordered],
            "caption": [row.caption for row in ordered],
            "metadata": [json.dumps(row.metadata, sort_keys=True) for row in ordered],
            "pixels": [row.pixels.tobytes() for row in ordered],
        },
        schema=PIXELS_SCHEMA,
    )


def pixel_rows(table: pa.Table, image_size_px: int) -> list[PixelRow]:
    """The images of a table that has all columns."""
    shape = (image_size_px, image_size_px, 3)
    return [
        PixelRow(
            key=record["key"],
            image_index=record["image_index"],
            sha256=record["sha256"],
            caption=record["caption"],
            metadata=json.loads(record["metadata"]),
            pixels=np.frombuffer(record["pixels"], np.uint8).reshape(shape),
        )
        for record in table.to_pylist()
    ]


def read_pixels(artifact: Artifact) -> list[PixelRow]:
    """Every image of a `pixels` artifact, sorted by key and index."""
    size = artifact.metadata["image_size_px"]
    rows: list[PixelRow] = []
    for entry in row_entries(artifact).values():
        rows += pixel_rows(load_table(artifact.store, entry), size)
    return sorted(rows, key=lambda row: (row.key, row.image_index))
