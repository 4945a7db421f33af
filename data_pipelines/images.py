"""The images of documents, decoded to squares: what the stages that look at pixels share."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8

from data_pipelines.decode import Reject as Undecodable
from data_pipelines.decode import center_crop_resize, decode_image
from data_pipelines.documents import Document, Image, Rejected
from data_pipelines.limits import DecodeLimits
from data_pipelines.perceptual_hash import perceptual_hash
from transfusion.artifacts.shards import Reject


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """One image of a document, as a square."""

    document: Document
    image_index: int
    sha256: bytes
    """Of the source bytes."""
    original_height: int
    original_width: int
    phash: int
    """Perceptual hash of the pixels."""
    pixels: UInt8[np.ndarray, "h w 3"]

    @property
    def key(self) -> str:
        """Key of its document."""
        return self.document.key


def load_images(
    documents: Iterable[Document | Rejected],
    *,
    image_size_px: int,
    limits: DecodeLimits,
    num_threads: int,
) -> Iterator[LoadedImage | Reject]:
    """Every image of the documents in their order, or why there is none; a few are decoded ahead."""

    def jobs() -> Iterator[Callable[[], LoadedImage | Reject]]:
        keys: set[str] = set()
        for document in documents:
            if isinstance(document, Rejected):
                reason = Reject(document.key, document.reason, document.detail)
            elif document.key in keys:
                reason = Reject(document.key, "duplicate_key", "another row has the same key")
            else:
                keys.add(document.key)
                images = [s for s in document.segments if isinstance(s, Image)]
                for index, image in enumerate(images):
                    yield partial(
                        _load, document, index, image, image_size_px=image_size_px, limits=limits
                    )
                continue
            yield partial(_keep, reason)

    if num_threads == 1:
        yield from (job() for job in jobs())
        return
    with ThreadPoolExecutor(num_threads) as threads:
        ahead: deque[Future[LoadedImage | Reject]] = deque()
        for job in jobs():
            ahead.append(threads.submit(job))
            if len(ahead) > 4 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _keep(reject: Reject) -> Reject:
    return reject


def _load(
    document: Document, index: int, image: Image, *, image_size_px: int, limits: DecodeLimits
) -> LoadedImage | Reject:
    try:
        pixels = decode_image(image.data, limits)
    except Undecodable as reject:
        return Reject(document.key, reject.reason, f"{image.name}: {reject.detail}")
    square = center_crop_resize(pixels, image_size_px)
    return LoadedImage(
        document=document,
        image_index=index,
        sha256=hashlib.sha256(image.data).digest(),
        original_height=pixels.shape[0],
        original_width=pixels.shape[1],
        phash=perceptual_hash(square),
        pixels=square,
    )
