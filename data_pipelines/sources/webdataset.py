"""Tars of captioned images, as img2dataset and the webdataset library write them. One shard a tar.

Members that stand side by side and share a name up to its first dot are a sample: an image, a caption in `.txt` or
in a field of `.json`, and metadata in `.json`. A tar is read from front to back, a sample at a time; nothing is
written to disk, and what a sample has beside these (`.pyd`, `.pickle`, `.npy`, ...) is passed over unread. Pickled
members are counted in the document's metadata as `pickled_members`.

Every sample is accounted for. Rejected are: one without an image or caption (`missing_member`), one whose key an
earlier sample of the tar has, or whose members stand apart (`duplicate_member`), links, devices, and names that
are absolute or lead upwards (`unsafe_member`), a caption that is no text (`bad_caption`), a `.json` that is no
object (`bad_metadata`), a member beyond the limit (`too_large`). Where a tar breaks off, what stands before is
kept, and one row says where it ends and which sample was cut (`truncated_tar`); so for a file that is no tar
(`not_a_tar`) and for bytes behind the end of an archive, as in tars joined by `cat` (`trailing_data`).

A tar is encoded by one actor and is started again whole: tens of gigabytes cost parallelism and every retry the
same again. One gigabyte, 10,000 samples, is what img2dataset writes. Packed tars (`.tar.gz`) are refused.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from data_pipelines.documents import Document, Rejected
from data_pipelines.sources.places import mark_of, open_place, split_mark
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config, Location
from transfusion.errors import ArtifactError
from transfusion.stage import Stage

SUFFIXES = (".tar",)
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class WebdatasetConfig(Config):
    """Captioned images from tars."""

    path: Location
    """A folder of tars, one tar, or a pattern such as `s3://bucket/laion/{00000..00999}.tar`."""

    image_extensions: tuple[str, ...] = Field(
        default=("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "heic"),
        min_length=1,
    )
    """Endings of the image: all that follows the first dot, in any case. Of several the first one is taken."""

    caption_extension: str = Field(default="txt", min_length=1)
    """Ending of the member that is the caption."""

    caption_field: str | None = Field(default=None, min_length=1)
    """The caption is this field of the `.json` member instead."""

    without_caption: Literal["reject", "image_only"] = "reject"
    """What becomes of an image that has no caption: rejected, or a document of the image alone."""

    metadata_fields: tuple[str, ...] = (
        "status", "width", "height", "original_width", "original_height", "language", "LANGUAGE",
        "LICENSE", "NSFW", "similarity", "punsafe", "pwatermark", "AESTHETIC_SCORE", "hash",
    )  # fmt: skip
    """Fields of the `.json` member that go along as metadata, for filters of a mixture, where they are there.

    Another choice tokenizes the captions anew and encodes no image again.
    """

    max_member_bytes: int = Field(default=64 * 2**20, ge=1, le=2**31)
    """Largest image, caption or `.json`: what is held of a tar is one sample."""


STAGE = Stage(
    config=WebdatasetConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.webdataset:identities",
    needs_ray=False,
    summary="Captioned images from tars, as img2dataset and webdataset write them.",
)


def list_shards(config: WebdatasetConfig) -> list[ShardDescriptor]:
    """One shard a tar.

    Raises:
        ArtifactError: Nothing is there, no tar, or a packed one.
    """
    place = open_place(config.path, where="webdataset")
    packed = next((key for key in place.keys() if key.endswith(_PACKED)), None)  # noqa: SIM118
    if packed is not None:
        raise ArtifactError(
            f"{place.url}/{packed}: packed tars are not read: images do not shrink, and the file could only be "
            "read from its start; unpack it, or name the others by a pattern such as *.tar"
        )
    rules = config.identity()
    metadata = identify("metadata", list(config.metadata_fields))
    rules.pop("metadata_fields", None)
    if config.caption_field is None and not config.metadata_fields:
        # A sample whose `.json` is broken is then a document.
        rules["json"] = "unread"
    return [
        ShardDescriptor(
            identity=identify("webdataset", [file.key, file.mark, rules]),
            spec={"path": file.key, **split_mark(file.mark)},
            metadata=metadata,
        )
        for file in place.files(SUFFIXES)
    ]


def identities(config: WebdatasetConfig) -> list[str]:
    """What stands for the tars in the listing's fingerprint: relative path and content of each."""
    return [shard.identity for shard in list_shards(config)]


def read(config: WebdatasetConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """The samples of one tar, in its order.

    Raises:
        ArtifactError: The tar is gone, or is not the one that was listed.
    """
    from data_pipelines.sources.webdataset_samples import Draw
    from data_pipelines.sources.webdataset_tar import read_samples

    key = descriptor.spec["path"]
    draw = Draw(config)
    with open_place(config.path, where="webdataset").open(key, mark_of(descriptor.spec)) as stream:
        for sample in read_samples(
            stream, key, wanted=draw.wanted, max_member_bytes=config.max_member_bytes
        ):
            yield sample if isinstance(sample, Rejected) else draw.document(sample)
