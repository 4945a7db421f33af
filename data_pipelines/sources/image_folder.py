"""A folder of captioned images: the Hugging Face `imagefolder` convention, or a .txt file beside each image.

`metadata.jsonl`, `metadata.csv` or `metadata.parquet`, in any folder, has a row an image: `file_name`, relative
to the metadata's folder, and a caption. An image that no row gives a caption takes it from `name.txt` beside
`name.png`.

Every image and every row is accounted for. Rejected are: a row whose file is missing (`missing_file`) or outside
the folder (`outside_folder`), a second row of one file (`duplicate_key`), a row that cannot be read
(`bad_metadata`), an image whose caption is no text (`bad_caption`), that has none (`no_caption`) or that cannot
be read (`unreadable`).

Shards are groups of images by a hash of their key, split where one grows too large: adding a file changes one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from data_pipelines.documents import Document, Image, Rejected, Segment, Text
from data_pipelines.sources.files import hash_files, key_of, local_root, path_of, walk
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config, Location
from transfusion.errors import ArtifactError
from transfusion.stage import Stage

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
    # These are rejected when they are decoded, and so are accounted for.
    ".heic", ".heif", ".jp2", ".jxl", ".svg", ".eps", ".psd", ".ico",
)  # fmt: skip
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageFolderConfig(Config):
    """Captioned images from a folder."""

    path: Location
    """The folder; images and metadata may lie in folders below it."""

    caption_column: str = Field(default="text", min_length=1)
    """The metadata's column that holds the caption."""

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
    return [
        ShardDescriptor(
            identity=identify("image_folder", [config.without_caption, group]), spec={"rows": group}
        )
        for group in groups
    ]


def identities(config: ImageFolderConfig) -> list[str]:
    """What stands for the images in the listing's fingerprint: paths, contents and captions."""
    return [shard.identity for shard in list_shards(config)]


def read(config: ImageFolderConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The captioned images of a group, and its rejected rows, by key.

    Raises:
        ArtifactError: An image is gone, or is not the one that was listed.
    """
    root = local_root(config.path, where="image_folder")
    for row in descriptor.spec["rows"]:
        key = row["key"]
        if "reason" in row:
            yield Rejected(key, row["reason"], row["detail"])
            continue
        try:
            data = (root / path_of(key)).read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{root}/{key}: is gone since the job was planned: {error.strerror}"
            ) from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise ArtifactError(
                f"{root}/{key}: has changed since the job was planned; run the job again"
            )
        caption = row["caption"]
        words: tuple[Segment, ...] = (Text(caption),) if caption is not None else ()
        yield Document(key=key, segments=(*words, Image(data, key)))


def _rows(config: ImageFolderConfig) -> Iterator[dict[str, Any]]:
    """Every image and every faulty row: `key`, and `sha256` and `caption` or else `reason` and `detail`."""
    from data_pipelines.sources.image_captions import Captions

    root = local_root(config.path, where="image_folder")
    if not root.is_dir():
        raise ArtifactError(f"{config.path}: no such folder")
    files = list(walk(root))
    captions = Captions(root, files, column=config.caption_column)
    images = sorted({name for name in files if _is_image(name)} | captions.named_files())
    hashes = hash_files(root, images)
    for fault in captions.faults:
        yield {"key": fault.key, "reason": fault.reason, "detail": fault.detail}
    for name in images:
        key, digest = key_of(name), hashes[name]
        caption = captions.of(name)
        if isinstance(digest, OSError):
            yield {"key": key, "reason": "unreadable", "detail": digest.strerror or str(digest)}
        elif isinstance(caption, Rejected):
            yield {"key": key, "reason": caption.reason, "detail": caption.detail}
        elif caption is None and config.without_caption == "reject":
            detail = f"no metadata row with a {config.caption_column!r} and no .txt file beside it"
            yield {"key": key, "reason": "no_caption", "detail": detail}
        else:
            yield {"key": key, "sha256": digest, "caption": caption}


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
