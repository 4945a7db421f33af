"""Runs a source over a bounded part of its input: a few files, the first rows of each.

The source itself reads, as it will in a job. Where its rows lie in files of their own, the part is a folder of
links (or of copies, from S3), so that a listing marks no more than that.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from posixpath import basename, dirname, join, normpath, splitext
from types import MappingProxyType
from typing import Any

from data_pipelines.documents import Document, Rejected
from data_pipelines.inspect.look import TAR_SUFFIXES, TEXT_SUFFIXES, Look, csv_head, marked, spread
from data_pipelines.sources.files import path_of
from data_pipelines.sources.image_folder import IMAGE_SUFFIXES, METADATA_NAMES
from data_pipelines.sources.lines import read_lines
from data_pipelines.sources.places import Place, RawFile, read_ahead
from data_pipelines.sources.row_files import JSONL_SUFFIXES, MAX_LINE_BYTES, PARQUET_SUFFIXES
from data_pipelines.sources.source import SOURCES, source_module
from transfusion.config import validate
from transfusion.errors import ArtifactError, SpecError

NUM_FILES = 3
"""Files that a sample is taken from, where they have rows enough."""

_MOST_FILES = 100
"""Files that are opened where they have few."""

_MOST_COPIED = 200
"""Images that are fetched from S3 for a sample of a folder."""


def sample(
    look: Look, source: str, config: Mapping[str, Any], *, num_rows: int
) -> Iterator[tuple[int, Document | Rejected]]:
    """The first rows of a few files, each with the number of its file.

    Raises:
        SpecError: The config is at fault.
        ArtifactError: The source cannot read what is there.
    """
    check(source, {"path": look.path, **config})
    with tempfile.TemporaryDirectory(prefix="transfusion-inspect-") as scratch:
        num_files = 1 if source == "image_folder" else min(NUM_FILES, len(_files(look, source)))
        share = -(-num_rows // num_files)
        parts = _parts(look, source, config, Path(scratch), share=share)
        left = num_rows
        for number, (key, part) in enumerate(parts):
            for row in islice(_read(source, part), min(share, left)):
                left -= 1
                yield number, _as_in_job(row, key)
            if not left:
                break


def check(source: str, config: Mapping[str, Any]) -> Any:
    """The source's config from plain values.

    Raises:
        SpecError: With every fault.
    """
    stage = source_module(SOURCES[source]).STAGE
    made, faults = validate(stage.config, dict(config), where="config")
    if made is None:
        raise SpecError(faults)
    return made


def _read(source: str, config: Mapping[str, Any]) -> Iterator[Document | Rejected]:
    module = source_module(SOURCES[source])
    made = check(source, config)
    for shard in module.list_shards(made):
        yield from module.read(made, shard)


def _parts(
    look: Look, source: str, config: Mapping[str, Any], scratch: Path, *, share: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file that a part is taken from, and the config that reads it."""
    if source == "image_folder":
        _fill_folder(look, scratch, num_rows=share)
        yield "", {**config, "path": str(scratch)}
        return
    known = _files(look, source)
    keys = dict.fromkeys((*spread(known, NUM_FILES), *spread(known, _MOST_FILES)))
    for number, key in enumerate(keys):
        if config.get("images") is None:
            yield key, {**config, "path": f"{look.place.url}/{path_of(key)}"}
            continue
        head = scratch / str(number) / path_of(key).removesuffix(".gz").removesuffix(".zst")
        head.parent.mkdir(parents=True)
        _copy_head(look.place, key, head, num_rows=share)
        yield key, {**config, "path": str(head)}


def _files(look: Look, source: str) -> Sequence[str]:
    """The files that the source takes from a folder; all of them where none has its ending."""
    return look.having(_ENDINGS[source]) or look.keys


def _as_in_job(row: Document | Rejected, file: str) -> Document | Rejected:
    """The row with the key that it has when the whole path is read, not this file alone."""
    name = basename(file)
    for known in (name, name.removesuffix(".gz").removesuffix(".zst")):
        if known and row.key.startswith((f"{known}:", f"{known}/")):
            return replace(row, key=file + row.key[len(known) :])
    return row


def _copy_head(place: Place, key: str, target: Path, *, num_rows: int) -> None:
    """The first rows of a file of rows; the lines of what stays keep their numbers."""
    with place.open(key, marked(place, key).mark) as stream:
        if key.endswith(PARQUET_SUFFIXES):
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                with pq.ParquetFile(stream) as file:
                    batches = islice(file.iter_batches(batch_size=num_rows), 1)
                    pq.write_table(pa.Table.from_batches(batches, file.schema_arrow), target)
            except (pa.ArrowException, OSError) as error:
                raise ArtifactError(f"{place.url}/{key}: cannot be read: {error}") from error
            return
        lines: list[bytes] = []
        for line in islice(read_lines(stream, key, max_bytes=MAX_LINE_BYTES), num_rows):
            if not isinstance(line, Rejected):
                lines += [b""] * (line[0] - len(lines) - 1)
                lines.append(line[1])
        target.write_bytes(b"\n".join(lines))


def _fill_folder(look: Look, folder: Path, *, num_rows: int) -> None:
    """A part of an image folder: of its metadata the first rows, with the files that they name."""
    metadata = look.having(METADATA_NAMES)
    there = set(look.keys)
    most = num_rows if look.place.reads_ahead == 1 else min(num_rows, _MOST_COPIED)
    wanted: list[str] = []
    for key in spread(metadata, NUM_FILES):
        target = folder / path_of(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = _metadata_head(look.place, key, target, num_rows=-(-most // min(len(metadata), 3)))
        named = (normpath(join(dirname(key), str(row.get("file_name")))) for row in rows)
        wanted += [name for name in named if name in there]
    if not metadata:
        for key in spread(look.having(IMAGE_SUFFIXES), most):
            beside = f"{splitext(key)[0]}.txt"
            wanted += [key, *([beside] if beside in there else [])]
    _bring(look.place, list(dict.fromkeys(wanted)), folder)


def _metadata_head(
    place: Place, key: str, target: Path, *, num_rows: int
) -> Sequence[Mapping[str, Any]]:
    """Writes the first rows of a metadata file and says what they hold."""
    if key.endswith(".csv"):
        lines = place.peek(key, 1 << 20).splitlines(keepends=True)
        target.write_bytes(b"".join(lines[: num_rows + 1]))
        return csv_head(place, key, num_rows=num_rows)
    _copy_head(place, key, target, num_rows=num_rows)
    if key.endswith(PARQUET_SUFFIXES):
        import pyarrow.parquet as pq

        try:
            return list(pq.read_table(target).to_pylist())
        except UnicodeDecodeError as error:
            raise ArtifactError(
                f"{place.url}/{key}: holds text that is no UTF-8: {error}"
            ) from error
    found = []
    for line in target.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):  # the source tells of it
            found.append(json.loads(line))
    return [row for row in found if isinstance(row, dict)]


def _bring(place: Place, keys: Sequence[str], folder: Path) -> None:
    """Files as links, or from S3 as copies."""
    for key in keys:
        (folder / path_of(key)).parent.mkdir(parents=True, exist_ok=True)
    if place.reads_ahead == 1:
        root = Path(place.url).absolute()
        for key in keys:
            (folder / path_of(key)).symlink_to(root / path_of(key))
        return
    files = [file for file in place.marked(keys) if isinstance(file, RawFile)]
    wanted = ((file.key, file.mark) for file in files)
    for file, data in zip(files, read_ahead(place, wanted), strict=True):
        (folder / path_of(file.key)).write_bytes(data)


_ENDINGS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "webdataset": TAR_SUFFIXES,
        "parquet_images": PARQUET_SUFFIXES,
        "interleaved": (*PARQUET_SUFFIXES, *JSONL_SUFFIXES),
        "edits": (*PARQUET_SUFFIXES, *JSONL_SUFFIXES),
        "text": (*PARQUET_SUFFIXES, *JSONL_SUFFIXES, *TEXT_SUFFIXES),
    }
)
"""By source, the files that it takes from a folder."""
