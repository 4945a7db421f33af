"""Text files: JSONL (also .gz), plain .txt (also .gz) and Parquet with a text column. One shard a file.

Rules, for every format: text is kept as it is, byte for byte, and never normalised; a byte order mark at the
start of a file is dropped. A row is rejected, with its file and line, when it is no UTF-8 (`invalid_utf8`), holds
a NUL (`nul_character`) or half a surrogate pair (`lone_surrogate`), is empty or white space (`empty`), or is
longer than the limit (`too_long`). In line-based files blank lines part the rows and are none.
"""

import glob
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipelines.documents import Document, Rejected
from data_pipelines.sources.files import hash_files, key_of, local_root, path_of, walk
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config, Location
from transfusion.errors import ArtifactError
from transfusion.stage import Stage

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz", ".parquet")


class TextConfig(Config):
    """Documents from text files."""

    path: Location
    """A file, a folder (all text files below it), or a pattern such as `corpus/**/*.jsonl.gz`."""

    text_column: str = Field(default="text", min_length=1)
    """The key of JSONL objects, or column of Parquet files, that holds the text."""

    txt_documents: Literal["line", "file"] = "line"
    """What one document of a .txt file is."""

    max_document_bytes: int = Field(default=10 * 2**20, ge=1, le=2**31)
    """Longest document, in bytes of UTF-8 (in JSONL: of the line)."""


STAGE = Stage(
    config=TextConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.text:identities",
    needs_ray=False,
    summary="Text from JSONL, .txt and Parquet files.",
)


def list_shards(config: TextConfig) -> list[ShardDescriptor]:
    """One shard a file.

    Raises:
        ArtifactError: Nothing is there, or nothing with a known ending, or a file cannot be read.
    """
    root, relatives = _find(config.path)
    hashes = hash_files(root, relatives)
    rules = config.model_dump(mode="json", exclude={"path"})
    shards = []
    for relative in relatives:
        digest = hashes[relative]
        key = key_of(relative)
        if isinstance(digest, OSError):
            raise ArtifactError(f"{root}/{key}: cannot be read: {digest.strerror}")
        identity = identify("text", [key, digest, rules])
        shards.append(ShardDescriptor(identity=identity, spec={"path": key, "sha256": digest}))
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

    root = _root(config.path)
    key = descriptor.spec["path"]
    place = root / path_of(key)
    found = hash_files(root, [path_of(key)])[path_of(key)]
    if found != descriptor.spec["sha256"]:
        raise ArtifactError(
            f"{root}/{key}: is gone or has changed since the job was planned; run the job again"
        )
    if key.endswith(".parquet"):
        yield from read_parquet(
            place, key, column=config.text_column, max_bytes=config.max_document_bytes
        )
    else:
        yield from read_rows(
            place,
            key,
            column=config.text_column if ".jsonl" in Path(key).suffixes else None,
            whole=config.txt_documents == "file",
            max_bytes=config.max_document_bytes,
        )


def _root(path: str) -> Path:
    """The folder that keys are relative to: the folder given, or that of the file, or that of the pattern."""
    place = local_root(path, where="text")
    if place.is_dir():
        return place
    if _is_pattern(place):
        return Path(*takewhile(lambda part: not glob.has_magic(part), place.parts))
    return place.parent


def _is_pattern(place: Path) -> bool:
    return glob.has_magic(str(place)) and not place.exists()


def _find(path: str) -> tuple[Path, list[str]]:
    """The root and the files below it that are meant."""
    root, place = _root(path), local_root(path, where="text")
    known = ", ".join(SUFFIXES)
    if place.is_dir():
        relatives = [name for name in walk(root) if name.endswith(SUFFIXES)]
        if not relatives:
            raise ArtifactError(f"{path}: no text file below this folder; these are read: {known}")
        return root, relatives
    if _is_pattern(place):
        pattern = place.parts[len(root.parts) :]
        there = walk(root) if root.is_dir() else iter(())
        relatives = [name for name in there if _fits(name.split("/"), pattern)]
        if not relatives:
            raise ArtifactError(f"{path}: no file fits this pattern")
    elif place.exists():
        relatives = [place.name]
    else:
        raise ArtifactError(f"{path}: no such file or folder")
    unknown = [name for name in relatives if not name.endswith(SUFFIXES)]
    if unknown:
        shown = key_of(unknown[0])
        raise ArtifactError(f"{root}/{shown}: the ending says no format; these are read: {known}")
    return root, relatives


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, part by part; `**` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
