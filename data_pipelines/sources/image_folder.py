"""A folder of captioned images: the Hugging Face `imagefolder` convention, or a .txt file beside each image.

`metadata.jsonl`, `metadata.csv` or `metadata.parquet`, in any folder, has a row an image: `file_name`, relative
to the metadata's folder, and a caption. An image that no row gives a caption takes it from `name.txt` beside
`name.png`.

Every image and every row is accounted for. Rejected are: a row whose file is missing (`missing_file`) or outside
the folder (`outside_folder`), a second row of one file (`duplicate_key`), a row that cannot be read
(`bad_metadata`), an image whose caption is no text (`bad_caption`) or whose class has no name (`unknown_label`),
that has none (`no_caption`) or that cannot be read (`unreadable`).

Shards are groups of images by a hash of their key, split where one grows too large: adding a file changes one.

On S3 a .txt file is read with its image, not when the job is planned: until then its ETag stands for the caption.
Every loose file costs a request, and a listing holds a line for each. For more than some million images write tars
(`data_pipelines.sources.webdataset`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from data_pipelines.documents import Document, Image, Rejected, Segment, Text
from data_pipelines.sources.class_prompts import ClassPrompt
from data_pipelines.sources.files import key_of, path_of
from data_pipelines.sources.places import (
    Place,
    RawFile,
    mark_of,
    open_place,
    read_ahead,
    split_mark,
)
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config, Location
from transfusion.errors import ArtifactError
from transfusion.stage import Stage

if TYPE_CHECKING:
    from data_pipelines.sources.image_captions import Captions

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
    # These are rejected when they are decoded, and so are accounted for.
    ".heic", ".heif", ".jp2", ".jxl", ".svg", ".eps", ".psd", ".ico",
)  # fmt: skip
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageFolderConfig(Config):
    """Captioned images from a folder."""

    path: Location
    """The folder, on disk or `s3://`; images and metadata may lie in folders below it."""

    caption_column: str = Field(default="text", min_length=1)
    """The metadata's column that holds the caption."""

    class_prompt: ClassPrompt | None = None
    """For a column of class labels: what is said of an image is the prompt of its class. A .txt file has none."""

    metadata_columns: tuple[str, ...] = ()
    """Further columns that go along as metadata, for filters of a mixture, where they are there."""

    without_caption: Literal["reject", "image_only"] = "reject"
    """What becomes of an image that has no caption: rejected, or a document of the image alone."""

    images_per_shard: int = Field(default=1024, ge=1)
    """Most images in a shard."""


STAGE = Stage(
    config=ImageFolderConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.image_folder:identities",
    needs_ray=False,
    summary="Captioned images from a folder: imagefolder metadata, or .txt files beside the images.",
)


def list_shards(config: ImageFolderConfig) -> list[ShardDescriptor]:
    """Groups of images by a hash of their key; captions and content hashes are in the descriptors.

    Raises:
        ArtifactError: The folder is missing, or holds no image and no metadata.
    """
    rows = sorted(_rows(config), key=lambda row: (row["key"], row.get("reason", "")))
    if not rows:
        raise ArtifactError(
            f"{config.path}: no image and no metadata file below this folder; images end in "
            f"{', '.join(IMAGE_SUFFIXES[:9])}; metadata is called {', '.join(METADATA_NAMES)}"
        )
    groups = _split(rows, config.images_per_shard, depth=0)
    return [_shard(group, config) for group in groups]


def _shard(group: list[dict[str, Any]], config: ImageFolderConfig) -> ShardDescriptor:
    said = [row.get("metadata", {}) for row in group]
    plain = [{name: row[name] for name in row if name != "metadata"} for row in group]
    return ShardDescriptor(
        identity=identify("image_folder", [config.without_caption, plain]),
        spec={"rows": group},
        metadata=identify("metadata", said) if config.metadata_columns else "",
    )


def identities(config: ImageFolderConfig) -> list[str]:
    """What stands for the images in the listing's fingerprint: paths, contents and captions."""
    return [shard.identity for shard in list_shards(config)]


def read(config: ImageFolderConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The captioned images of a group, and its rejected rows, by key.

    Raises:
        ArtifactError: An image is gone, or is not the one that was listed.
    """
    from data_pipelines.sources.image_captions import caption_in

    place = open_place(config.path, where="image_folder")
    contents = read_ahead(place, _wanted(descriptor.spec["rows"]))
    for row in descriptor.spec["rows"]:
        key = row["key"]
        if "reason" in row:
            yield Rejected(key, row["reason"], row["detail"])
            continue
        data, caption = next(contents), row["caption"]
        if "beside" in row:
            sidecar = path_of(row["beside"]["path"])
            caption = caption_in(next(contents), name=key, sidecar=sidecar)
        if isinstance(caption, Rejected):
            yield Rejected(key, caption.reason, caption.detail)
        elif caption is None and config.without_caption == "reject":
            yield Rejected(key, "no_caption", "the .txt file beside it is empty")
        else:
            words: tuple[Segment, ...] = (Text(caption),) if caption is not None else ()
            segments = (*words, Image(data, key))
            yield Document(key=key, segments=segments, metadata=row.get("metadata", {}))


def _wanted(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Files to read for these rows, in their order."""
    for row in rows:
        if "reason" not in row:
            yield row["key"], mark_of(row)
            if "beside" in row:
                yield row["beside"]["path"], mark_of(row["beside"])


def _rows(config: ImageFolderConfig) -> Iterator[dict[str, Any]]:
    """Every image and every faulty row.

    Each has `key` and either `reason` and `detail`, or the file's mark and `caption`, which may lie in a file that
    is to be read with the image: `beside`.
    """
    from data_pipelines.sources.image_captions import Captions

    place = open_place(config.path, where="image_folder")
    names = list(map(path_of, place.keys()))
    captions = Captions(
        place,
        names,
        column=config.caption_column,
        metadata=config.metadata_columns,
        class_prompt=config.class_prompt,
    )
    images = sorted({name for name in names if _is_image(name)} | captions.named_files())
    for fault in captions.faults:
        yield {"key": fault.key, "reason": fault.reason, "detail": fault.detail}
    keys = [key_of(name) for name in images]
    for name, file in zip(images, place.marked(keys), strict=True):
        if isinstance(file, RawFile):
            said = captions.metadata_of(name)
            along = {"metadata": said} if said else {}
            yield {"key": file.key, **_said(name, file, captions, place, config), **along}
        else:
            yield {"key": file[0], "reason": "unreadable", "detail": file[1]}


def _said(
    name: str, file: RawFile, captions: "Captions", place: Place, config: ImageFolderConfig
) -> dict[str, Any]:
    """The rest of an image's row."""
    caption, sidecar = captions.of(name), captions.beside(name)
    if caption is None and sidecar is not None:
        read = _beside(name, sidecar, place)
        if isinstance(read, RawFile):
            beside = {"path": read.key, **split_mark(read.mark)}
            return {**split_mark(file.mark), "caption": None, "beside": beside}
        caption = read
    if isinstance(caption, Rejected):
        return {"reason": caption.reason, "detail": caption.detail}
    if caption is None and config.without_caption == "reject":
        detail = f"no metadata row with a {config.caption_column!r} and no .txt file beside it"
        return {"reason": "no_caption", "detail": detail}
    return {**split_mark(file.mark), "caption": caption}


def _beside(name: str, sidecar: str, place: Place) -> RawFile | str | Rejected | None:
    """The caption in the .txt file beside an image, or that file where it is to be read with the image."""
    from data_pipelines.sources.image_captions import MAX_CAPTION_BYTES, caption_in

    key = key_of(sidecar)
    if place.reads_ahead > 1:
        (file,) = place.marked([key])
        if isinstance(file, RawFile) and file.size_bytes > MAX_CAPTION_BYTES:
            return Rejected(name, "bad_caption", f"{key}: more than {MAX_CAPTION_BYTES} bytes")
        return file if isinstance(file, RawFile) else Rejected(name, "bad_caption", file[1])
    try:
        data = place.peek(key, MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return Rejected(name, "bad_caption", f"{key}: {error.strerror}")
    return caption_in(data, name=name, sidecar=sidecar)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _split(rows: Sequence[dict[str, Any]], most: int, depth: int) -> list[list[dict[str, Any]]]:
    """Groups of at most `most` rows: halved by one more bit of the key's hash where there are more."""
    if len(rows) <= most or depth == 128:
        return [list(rows)] if rows else []
    halves: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in rows:
        digest = int.from_bytes(hashlib.sha256(row["key"].encode("utf-8")).digest(), "big")
        halves[(digest >> (255 - depth)) & 1].append(row)
    return _split(halves[0], most, depth + 1) + _split(halves[1], most, depth + 1)
