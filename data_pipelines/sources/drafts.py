"""Documents from rows of Parquet and JSONL files, one shard a file: what the sources of rows have in common.

A source says what a row holds: a draft, in which an image may be its bytes or the name of a file. Files that rows
name lie in one folder; which of them a shard's rows name, and what those hold, is part of the shard's identity, so
that a changed image re-encodes the one shard that shows it. For that the files of rows are read when a job is
planned, and a descriptor holds a line for each image: right for a million image files or so. More images than
that belong into Parquet, as bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from pydantic import Field

from data_pipelines.documents import Document, Image, Rejected, Segment, Text
from data_pipelines.sources.cells import BadRow, Named, key_of_row, metadata_of
from data_pipelines.sources.image_files import ImageFiles, Unfilled, filled
from data_pipelines.sources.places import Place, RawFile, mark_of, open_place, split_mark
from data_pipelines.sources.row_files import JSONL_SUFFIXES, Row, read_rows
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config, Location
from transfusion.errors import ArtifactError


class RowsConfig(Config):
    """What the sources of rows have in common."""

    path: Location
    """A file, a folder or a pattern, on disk or `s3://`."""

    key_column: str | None = None
    """The column that holds a row's key, unique in the whole source; without one it is file and number."""

    metadata_columns: tuple[str, ...] = ()
    """Columns that go along with the document, for filters of a mixture. Nested values become JSON text.

    Another choice tokenizes the texts anew and encodes no image again.
    """

    max_images: int = Field(default=1024, ge=1, le=32767)
    """Most images in a document; one with more is rejected (`too_many_images`)."""

    max_document_bytes: int = Field(default=512 * 2**20, ge=1)
    """Most bytes of all image files of a document, which are held at once (`too_many_bytes`)."""


class ImageFilesConfig(RowsConfig):
    """For rows that may name image files."""

    images: Location | None = None
    """The folder of the image files that rows name; None where the rows hold the image bytes themselves."""

    image_files: Literal["name", "sha256_of_url"] = "name"
    """How a row names a file: by its path in that folder, or by a URL whose sha256 in hexadecimal is the file's
    name without its ending, in whatever folder it lies."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A row as it will be a document."""

    segments: Sequence[Text | Image | Named]

    between_texts: str = ""
    """What stands between two texts that follow each other."""


Draw = Callable[[Row], Draft]
"""Says what a row holds. Raises BadRow."""


def list_row_shards(
    label: str, config: RowsConfig, *, suffixes: Sequence[str], columns: Sequence[str], draw: Draw
) -> list[ShardDescriptor]:
    """One shard a file.

    Raises:
        ArtifactError: Nothing is there to read, or a file cannot be read.
    """
    place = open_place(config.path, where=label)
    files = place.files(suffixes)
    rules = config.identity()
    kept = rules.pop("metadata_columns", None)
    metadata = identify("metadata", kept) if kept else ""
    folder = config.images if isinstance(config, ImageFilesConfig) else None
    if folder is None:
        _refuse_json(config, files)
        return [
            ShardDescriptor(
                identity=identify(label, [file.key, file.mark, rules]),
                spec={"path": file.key, **split_mark(file.mark)},
                metadata=metadata,
            )
            for file in files
        ]
    assert isinstance(config, ImageFilesConfig)
    there = ImageFiles(open_place(folder, where=label), by=config.image_files)
    shards = []
    for file in files:
        found = there.marked(_names(place, file, columns=columns, draw=draw))
        named = {name: list(image) for name, image in found.items()}
        identity = identify(label, [file.key, file.mark, rules, named])
        spec = {"path": file.key, **split_mark(file.mark), "images": named}
        shards.append(ShardDescriptor(identity=identity, spec=spec, metadata=metadata))
    return shards


def _refuse_json(config: RowsConfig, files: Sequence[RawFile]) -> None:
    named = [file.key for file in files if file.key.endswith(JSONL_SUFFIXES)]
    if named:
        raise ArtifactError(
            f"{config.path}: {named[0]}: JSON holds no image bytes; say in `images` in which folder the files "
            "lie that its rows name"
        )


def _names(place: Place, file: RawFile, *, columns: Sequence[str], draw: Draw) -> Iterator[str]:
    """The image files that the rows of a file name."""
    for row in read_rows(place, file.key, file.mark, columns=columns):
        if not isinstance(row, Rejected):
            try:
                draft = draw(row)
            except BadRow:
                continue  # it is rejected when it is read
            yield from (segment.name for segment in draft.segments if isinstance(segment, Named))


def read_row_shard(
    config: RowsConfig,
    descriptor: ShardDescriptor,
    *,
    columns: Sequence[str],
    draw: Draw,
    missing_image: Literal["drop", "reject"] = "reject",
) -> Iterator[Document | Rejected]:
    """The documents of one file, in its order.

    Raises:
        ArtifactError: A file is gone or has changed, is no Parquet file, or lacks a column.
    """
    spec = descriptor.spec
    place = open_place(config.path, where=descriptor.identity.partition(":")[0])
    folder = config.images if isinstance(config, ImageFilesConfig) else None
    images = open_place(folder, where="images") if folder is not None else None
    known: Mapping[str, Sequence[Any]] = spec.get("images", {})
    if config.key_column is not None:
        columns = [*columns, config.key_column]

    def finish(row: Row | Rejected) -> Rejected | Unfilled:
        if isinstance(row, Rejected):
            return row
        try:
            return _finish(config, row, draw(row), known=known, missing_image=missing_image)
        except BadRow as bad:
            return Rejected(row.where, bad.reason, bad.detail)

    rows = read_rows(
        place, spec["path"], mark_of(spec), columns=columns, metadata=config.metadata_columns
    )
    yield from filled(images, map(finish, rows))


def _finish(
    config: RowsConfig,
    row: Row,
    draft: Draft,
    *,
    known: Mapping[str, Sequence[Any]],
    missing_image: Literal["drop", "reject"],
) -> Unfilled:
    key = row.where
    if config.key_column is not None:
        key = key_of_row(row.values.get(config.key_column), column=config.key_column)
    there = [
        segment
        for segment in draft.segments
        if not isinstance(segment, Named) or segment.name in known
    ]
    num_missing = len(draft.segments) - len(there)
    if num_missing and missing_image == "reject":
        absent = next(s.name for s in draft.segments if isinstance(s, Named) and s not in there)
        shown = absent.encode("utf-8", "backslashreplace").decode()
        what = f"such as the file {shown!r}" if shown else "which has neither bytes nor a name"
        raise BadRow("image_missing", f"{num_missing} of its images, {what}"[:300])
    segments: list[Segment] = []
    files: dict[int, RawFile] = {}
    for is_text, run in groupby(there, key=lambda segment: isinstance(segment, Text)):
        if is_text:
            words = [segment.text for segment in run if isinstance(segment, Text) and segment.text]
            segments += [Text(draft.between_texts.join(words))] if words else []
            continue
        for segment in run:
            if isinstance(segment, Named):
                files[len(segments)] = RawFile(*known[segment.name])
                segments.append(Image(b"", segment.name))
            elif isinstance(segment, Image):
                segments.append(segment)
    _check(config, segments, files)
    metadata = metadata_of(row.values, config.metadata_columns)
    if missing_image == "drop":
        metadata["missing_images"] = num_missing
    return Unfilled(Document(key, tuple(segments), metadata), files)


def _check(config: RowsConfig, segments: Sequence[Segment], files: Mapping[int, RawFile]) -> None:
    images = [segment for segment in segments if isinstance(segment, Image)]
    if not segments:
        raise BadRow("empty", "no text and no image")
    if len(images) > config.max_images:
        raise BadRow("too_many_images", f"{len(images)}; at most {config.max_images} are read")
    size_bytes = sum(len(image.data) for image in images)
    size_bytes += sum(file.size_bytes for file in files.values())
    if size_bytes > config.max_document_bytes:
        raise BadRow(
            "too_many_bytes",
            f"{size_bytes} of images; at most {config.max_document_bytes} are read",
        )
