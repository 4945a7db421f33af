"""Kind `latents`: the posterior of each image, raw; one row an image, sorted by key and index.

Metadata: `latent_channels`, `latent_height`, `latent_width`, `image_size_px`. Shift and scale belong to the
autoencoder's artifact (the input `autoencoder`), so that they do not drift as data grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float16

LATENTS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_index", pa.int16()),  # among the images of its document
        ("height", pa.int16()),  # latent pixels
        ("width", pa.int16()),
        ("mean", pa.binary()),  # float16, little-endian: c h w
        ("std", pa.binary()),
        ("original_height", pa.int32()),  # pixels of the source, after rotation by EXIF
        ("original_width", pa.int32()),
        ("sha256", pa.binary(32)),  # of the source bytes
        ("phash", pa.uint64()),  # perceptual hash of the pixels that were encoded
    ]
)
LATENTS_RAW = ("mean", "std", "sha256")
LATENTS_INDEX = (
    "key", "image_index", "height", "width", "original_height", "original_width", "sha256", "phash",
)  # fmt: skip
"""The columns from which a mixture is planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentRow:
    """One encoded image."""

    key: str
    image_index: int
    mean: Float16[np.ndarray, "c h w"]
    std: Float16[np.ndarray, "c h w"]
    original_height: int
    original_width: int
    sha256: bytes
    phash: int | None
    """None where the pixels were never seen."""


def latents_table(rows: Sequence[LatentRow]) -> pa.Table:
    """The rows of a shard, sorted by key and index."""
    ordered = sorted(rows, key=lambda row: (row.key, row.image_index))
    return pa.table(
        {
            "key": [row.key for row in ordered],
            "image_index": [row.image_index for row in ordered],
            "height": [row.mean.shape[1] for row in ordered],
            "width": [row.mean.shape[2] for row in ordered],
            "mean": [row.mean.astype("<f2").tobytes() for row in ordered],
            "std": [row.std.astype("<f2").tobytes() for row in ordered],
            "original_height": [row.original_height for row in ordered],
            "original_width": [row.original_width for row in ordered],
            "sha256": [row.sha256 for row in ordered],
            "phash": [row.phash for row in ordered],
        },
        schema=LATENTS_SCHEMA,
    )


def latent_rows(table: pa.Table, channels: int) -> list[LatentRow]:
    """The images of a table that has all columns."""
    rows = []
    for record in table.to_pylist():
        shape = (channels, record["height"], record["width"])
        rows.append(
            LatentRow(
                key=record["key"],
                image_index=record["image_index"],
                mean=np.frombuffer(record["mean"], "<f2").reshape(shape),
                std=np.frombuffer(record["std"], "<f2").reshape(shape),
                original_height=record["original_height"],
                original_width=record["original_width"],
                sha256=record["sha256"],
                phash=record["phash"],
            )
        )
    return rows
