"""The images of a shard, one after the other: what the stages that look at pixels share."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from data_pipelines.decode import Reject as DecodeReject
from data_pipelines.decode import center_crop_resize, decode_image
from data_pipelines.documents import Document, Image, Rejected
from data_pipelines.limits import DecodeLimits
from data_pipelines.sources.source import Listing, ShardDescriptor
from transfusion.artifacts.shards import Reject


@dataclass(frozen=True, slots=True)
class ImageOfDocument:
    """An image where it stands, not yet decoded."""

    document: Document
    index: int
    """Among the images of its document."""
    data: bytes

    @property
    def sha256(self) -> bytes:
        """Of the source bytes."""
        return hashlib.sha256(self.data).digest()

    @property
    def name(self) -> str:
        """For the reject table."""
        return self.document.key if self.index == 0 else f"{self.document.key}#{self.index}"


@dataclass(frozen=True, slots=True)
class Crop:
    """A decoded square crop, and the size that it was cut from."""

    pixels: UInt8[np.ndarray, "s s 3"]
    original_height: int
    original_width: int


def images_of_shard(
    listing: Listing, descriptor: ShardDescriptor
) -> Iterator[ImageOfDocument | Reject | None]:
    """Every image of a shard; a reject for what the source refused; None for a document without image.

    A key that was seen before is refused: rows are joined by key.
    """
    keys: set[str] = set()
    for document in listing.read(descriptor):
        if isinstance(document, Rejected):
            yield Reject(document.key, document.reason, document.detail)
            continue
        if document.key in keys:
            yield Reject(document.key, "duplicate_key", "another row has the same key")
            continue
        keys.add(document.key)
        images = [segment for segment in document.segments if isinstance(segment, Image)]
        if not images:
            yield None
        for index, image in enumerate(images):
            yield ImageOfDocument(document, index, image.data)


def crop_image(image: ImageOfDocument, *, size_px: int, limits: DecodeLimits) -> Crop | Reject:
    """Decodes an image to its centred square, or says why not."""
    try:
        pixels = decode_image(image.data, limits)
    except DecodeReject as reject:
        return Reject(image.name, reject.reason, reject.detail)
    height, width = pixels.shape[:2]
    return Crop(center_crop_resize(pixels, size_px), height, width)
