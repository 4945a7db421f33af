"""Captioned images in Parquet: plain bytes, or the `{bytes, path}` column that Hugging Face `datasets` writes.

One shard a file, read a few rows at a time. Rejected are: a row without image bytes (`image_missing`; a path alone
is none), with an image (`image_not_bytes`) or a caption (`not_text`) of another type, without a caption
(`no_caption`), of a class without a name (`unknown_label`), with a caption that is no good text (`nul_character`,
`too_long`, `unreadable_value`), without a good key (`bad_key`), and the rows of a row group from where on it
cannot be read (`broken_parquet`). A column that is not there is an error that names those that are.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from pydantic import Field

from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.sources.cells import BadRow, Named, image_of, text_of
from data_pipelines.sources.class_prompts import ClassPrompt
from data_pipelines.sources.drafts import Draft, RowsConfig, list_row_shards, read_row_shard
from data_pipelines.sources.row_files import PARQUET_SUFFIXES, Row
from data_pipelines.sources.source import ShardDescriptor
from transfusion.stage import Stage


class ParquetImagesConfig(RowsConfig):
    """Captioned images from Parquet files."""

    image_column: str = Field(default="image", min_length=1)

    caption_column: str | None = Field(default="text", min_length=1)
    """None for images that have no captions."""

    class_prompt: ClassPrompt | None = None
    """For a column of class labels: what is said of an image is the prompt of its class."""

    without_caption: Literal["reject", "image_only"] = "reject"
    """What becomes of a row whose caption is null or blank: rejected, or a document of the image alone."""


STAGE = Stage(
    config=ParquetImagesConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.parquet_images:identities",
    needs_ray=False,
    summary="Captioned images in Parquet files: bytes, or the image column of Hugging Face datasets.",
)


def list_shards(config: ParquetImagesConfig) -> list[ShardDescriptor]:
    """One shard a file.

    Raises:
        ArtifactError: Nothing is there to read, or a file cannot be read.
    """
    return list_row_shards(
        "parquet_images",
        config,
        suffixes=PARQUET_SUFFIXES,
        columns=_columns(config),
        draw=partial(draft, config),
    )


def identities(config: ParquetImagesConfig) -> list[str]:
    """What stands for the files in the listing's fingerprint: relative path and content of each."""
    return [shard.identity for shard in list_shards(config)]


def read(config: ParquetImagesConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The captioned images of one file, in its order.

    Raises:
        ArtifactError: The file is gone or has changed, is no Parquet file, or lacks a column.
    """
    yield from read_row_shard(
        config, descriptor, columns=_columns(config), draw=partial(draft, config)
    )


def draft(config: ParquetImagesConfig, row: Row) -> Draft:
    """Caption and image of a row.

    Raises:
        BadRow: There is none.
    """
    column = config.image_column
    image = image_of(row.values.get(column), column=column, name=row.where)
    if isinstance(image, Named):
        found = f"a path and no bytes: {image.name!r}" if image.name else "nothing"
        raise BadRow("image_missing", f"{column!r} holds {found}"[:200])
    return Draft([*_caption(config, row), image])


def _caption(config: ParquetImagesConfig, row: Row) -> list[Text | Image | Named]:
    if config.caption_column is None:
        return []
    value = row.values.get(config.caption_column)
    if config.class_prompt is not None:
        value = config.class_prompt.of(value, column=config.caption_column)
    if value is not None and (caption := text_of(value, column=config.caption_column)).strip():
        return [Text(caption)]
    if config.without_caption == "image_only":
        return []
    found = "null" if value is None else "blank"
    raise BadRow("no_caption", f"{config.caption_column!r} is {found}")


def _columns(config: ParquetImagesConfig) -> list[str]:
    caption = [] if config.caption_column is None else [config.caption_column]
    return [config.image_column, *caption]
