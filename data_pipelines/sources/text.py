"""Text files: JSONL and plain .txt (also .gz and .zst), and Parquet with a text column. One shard a file.

Rules, for every format: text is kept as it is, byte for byte, and never normalised; a byte order mark at the
start of a file is dropped. A row is rejected, with its file and line, when it is no UTF-8 (`invalid_utf8`), holds
a NUL (`nul_character`) or half a surrogate pair (`lone_surrogate`), is empty or white space (`empty`), or is
longer than the limit (`too_long`). In line-based files blank lines part the rows and are none.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from data_pipelines.documents import Document, Rejected
from data_pipelines.sources.places import mark_of, open_place, split_mark
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config, Location
from transfusion.stage import Stage

SUFFIXES = (
    ".jsonl", ".jsonl.gz", ".jsonl.zst",
    ".txt", ".txt.gz", ".txt.zst",
    ".parquet",
)  # fmt: skip


class TextConfig(Config):
    """Documents from text files."""

    path: Location
    """A file, a folder (all text files below it), or a pattern such as `corpus/**/*.jsonl.{gz,zst}`; also `s3://`."""

    text_column: str = Field(default="text", min_length=1)
    """The key of JSONL objects, or column of Parquet files, that holds the text."""

    txt_documents: Literal["line", "file"] = "line"
    """What one document of a .txt file is."""

    metadata_columns: tuple[str, ...] | Literal["all"] = ()
    """Further keys or columns that go along as metadata, for filters of a mixture, where they are there. all: each
    JSONL object whole and as it is, the text in it too, or every other column: what is known of a prompt."""

    max_document_bytes: int = Field(default=10 * 2**20, ge=1, le=2**31)
    """Longest document, in bytes of UTF-8 (in JSONL: of the line)."""


STAGE = Stage(
    config=TextConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=2,
    raw="data_pipelines.sources.text:identities",
    needs_ray=False,
    summary="Text from JSONL, .txt and Parquet files.",
)


def list_shards(config: TextConfig) -> list[ShardDescriptor]:
    """One shard a file.

    Raises:
        ArtifactError: Nothing is there, or nothing with a known ending, or a file cannot be read.
    """
    rules = config.model_dump(mode="json", exclude={"path", "metadata_columns"})
    columns = config.metadata_columns
    kept = columns if columns == "all" else list(columns)
    metadata = identify("metadata", kept) if kept else ""
    shards = []
    for file in open_place(config.path, where="text").files(SUFFIXES):
        mark = split_mark(file.mark)
        identity = identify("text", [file.key, mark.get("sha256", file.mark), rules])
        spec = {"path": file.key, **mark}
        shards.append(ShardDescriptor(identity=identity, spec=spec, metadata=metadata))
    return shards


def identities(config: TextConfig) -> list[str]:
    """What stands for the files in the listing's fingerprint: relative path and content of each."""
    return [shard.identity for shard in list_shards(config)]


def read(config: TextConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The documents of one file, in its order.

    Raises:
        ArtifactError: The file is gone, or is not the one that was listed.
    """
    from data_pipelines.sources.text_formats import read_parquet, read_rows

    key = descriptor.spec["path"]
    with open_place(config.path, where="text").open(key, mark_of(descriptor.spec)) as stream:
        if key.endswith(".parquet"):
            yield from read_parquet(
                stream,
                key,
                column=config.text_column,
                metadata=config.metadata_columns,
                max_bytes=config.max_document_bytes,
            )
        else:
            yield from read_rows(
                stream,
                key,
                column=config.text_column if ".jsonl" in PurePosixPath(key).suffixes else None,
                metadata=config.metadata_columns,
                whole=config.txt_documents == "file",
                max_bytes=config.max_document_bytes,
            )
