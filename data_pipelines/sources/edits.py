"""Edits: an image, an instruction, and the image as it is afterwards. Parquet, or JSONL beside a folder of images.

A document is image, text, image. Parquet holds the two images as bytes (plain, or the `{bytes, path}` of Hugging
Face `datasets`) or as names of files; JSONL names them. The columns are called as in most such sets; name yours
where they differ (InstructPix2Pix: `original_image`, `edit_prompt`, `edited_image`).

Rejected are: a row one of whose images is missing (`image_missing`) or no image (`image_not_bytes`), and one whose
instruction is missing, blank or no good text (`no_instruction`, `lone_surrogate`, `nul_character`).
"""

from collections.abc import Iterator
from functools import partial

from pydantic import Field

from data_pipelines.documents import Document, Rejected, Text
from data_pipelines.sources.cells import BadRow, image_of, text_of
from data_pipelines.sources.drafts import Draft, ImageFilesConfig, list_row_shards, read_row_shard
from data_pipelines.sources.row_files import JSONL_SUFFIXES, PARQUET_SUFFIXES, Row
from data_pipelines.sources.source import ShardDescriptor
from transfusion.stage import Stage


class EditsConfig(ImageFilesConfig):
    """Edits from Parquet or JSONL files."""

    source_column: str = Field(default="source_image", min_length=1)

    instruction_column: str = Field(default="instruction", min_length=1)

    target_column: str = Field(default="target_image", min_length=1)


STAGE = Stage(
    config=EditsConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.edits:identities",
    needs_ray=False,
    summary="Edits: image, instruction, image; from Parquet, or from JSONL with a folder of images.",
)


def list_shards(config: EditsConfig) -> list[ShardDescriptor]:
    """One shard a file.

    Raises:
        ArtifactError: Nothing is there to read, or a file cannot be read.
    """
    return list_row_shards(
        "edits",
        config,
        suffixes=(*PARQUET_SUFFIXES, *JSONL_SUFFIXES),
        columns=_columns(config),
        draw=partial(draft, config),
    )


def identities(config: EditsConfig) -> list[str]:
    """What stands for the files in the listing's fingerprint: path and content of rows and of their images."""
    return [shard.identity for shard in list_shards(config)]


def read(config: EditsConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The edits of one file, in its order.

    Raises:
        ArtifactError: A file is gone or has changed, is no Parquet file, or lacks a column.
    """
    yield from read_row_shard(
        config, descriptor, columns=_columns(config), draw=partial(draft, config)
    )


def draft(config: EditsConfig, row: Row) -> Draft:
    """Source, instruction and target of a row.

    Raises:
        BadRow: One of them is missing.
    """
    source, target = (
        image_of(row.values.get(column), column=column, name=f"{row.where} {column}")
        for column in (config.source_column, config.target_column)
    )
    column = config.instruction_column
    instruction = text_of(row.values.get(column), column=column, otherwise="no_instruction")
    if not instruction.strip():
        raise BadRow("no_instruction", f"{column!r} is blank")
    return Draft([source, Text(instruction), target])


def _columns(config: EditsConfig) -> list[str]:
    return [config.source_column, config.instruction_column, config.target_column]
