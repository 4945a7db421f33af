"""Web pages with images between their texts: OBELICS- and MMC4-shaped Parquet and JSONL.

Image bytes lie in the rows (Parquet) or in files that the rows name by path or URL. One shard a file of rows.

Rejected are: a row whose lists are none (`not_a_list`), differ in length (`uneven_lists`) or hold both or neither
of text and image at a place (`both_or_neither`); an image that belongs to no sentence (`bad_image_info`), is no
bytes and no name (`image_not_bytes`) or is missing (`image_missing`, when `missing_image` says so); text that is
none (`not_text`, `lone_surrogate`, `nul_character`); too much of it all (`too_many_images`, `too_many_bytes`); and
a document of which nothing is left (`empty`).
"""

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Literal

from pydantic import Field

from data_pipelines.documents import Document, Rejected
from data_pipelines.sources import mmc4, obelics
from data_pipelines.sources.drafts import Draw, ImageFilesConfig, list_row_shards, read_row_shard
from data_pipelines.sources.row_files import JSONL_SUFFIXES, PARQUET_SUFFIXES
from data_pipelines.sources.source import ShardDescriptor
from transfusion.stage import Stage


class InterleavedConfig(ImageFilesConfig):
    """Documents of texts and images in turn."""

    layout: Literal["obelics", "mmc4"]
    """`obelics`: lists of texts and of images, one of which is set at each place. `mmc4`: sentences, and images
    that say before which of them they stand."""

    texts_column: str | None = Field(default=None, min_length=1)
    """None for the layout's own: `texts`, or `text_list`."""

    images_column: str | None = Field(default=None, min_length=1)
    """None for the layout's own: `images`, or `image_info`."""

    missing_image: Literal["drop", "reject"] = "drop"
    """What an image without a file costs: itself (`missing_images` in the document's metadata counts them), or its
    document."""


STAGE = Stage(
    config=InterleavedConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.interleaved:identities",
    needs_ray=False,
    summary="Web pages with images between their texts: OBELICS- and MMC4-shaped Parquet and JSONL.",
)


def list_shards(config: InterleavedConfig) -> list[ShardDescriptor]:
    """One shard a file.

    Raises:
        ArtifactError: Nothing is there to read, or a file cannot be read.
    """
    return list_row_shards(
        "interleaved",
        config,
        suffixes=(*PARQUET_SUFFIXES, *JSONL_SUFFIXES),
        columns=columns(config),
        draw=drawing(config),
    )


def identities(config: InterleavedConfig) -> list[str]:
    """What stands for the files in the listing's fingerprint: path and content of rows and of their images."""
    return [shard.identity for shard in list_shards(config)]


def read(config: InterleavedConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The documents of one file, in its order.

    Raises:
        ArtifactError: A file is gone or has changed, is no Parquet file, or lacks a column.
    """
    yield from read_row_shard(
        config,
        descriptor,
        columns=columns(config),
        draw=drawing(config),
        missing_image=config.missing_image,
    )


def columns(config: InterleavedConfig) -> tuple[str, str]:
    """The columns of texts and of images."""
    texts, images = _LAYOUTS[config.layout].COLUMNS
    return config.texts_column or texts, config.images_column or images


def drawing(config: InterleavedConfig) -> Draw:
    """What says of a row which document it holds."""
    texts, images = columns(config)
    draw: Draw = partial(_LAYOUTS[config.layout].draft, texts_column=texts, images_column=images)
    return draw


_LAYOUTS: dict[str, ModuleType] = {"obelics": obelics, "mmc4": mmc4}
