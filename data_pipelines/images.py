"""The images of documents, decoded and cropped: what the stages that look at pixels share."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from data_pipelines.ahead import Ahead
from data_pipelines.decode import Reject as Undecodable
from data_pipelines.decoders import SLOT_BYTES, Decoders
from data_pipelines.document_images import DocumentImage, document_images
from data_pipelines.documents import Document, Rejected
from data_pipelines.preparation import Preparation, Prepared
from transfusion.artifacts.shards import Reject

IMAGES_PER_REQUEST = 8
BYTES_PER_REQUEST = 2**20
"""A decoder is given some images at a time: for small ones the way there and back costs as much as decoding."""

REQUESTS_AHEAD = 3
"""For each decoder as many wait to be decoded and as many are done: a slow image does not hold up the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedImage:
    """One image of a document, cropped."""

    document: Document
    image_index: int
    prepared: Prepared

    @property
    def key(self) -> str:
        """Key of its document."""
        return self.document.key

    @property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """The crop."""
        return self.prepared.pixels


def load_images(
    documents: Iterable[Document | Rejected], *, preparation: Preparation, decoders: Decoders
) -> Iterator[LoadedImage | Reject]:
    """Every image of the documents in their order, or why there is none; some are read and decoded ahead."""
    num_ahead = decoders.num_processes * REQUESTS_AHEAD
    with (
        Ahead(_requests(document_images(documents), _most(preparation)), num_ahead) as requests,
        ThreadPoolExecutor(decoders.num_processes) as threads,
    ):
        waiting: deque[Future[list[LoadedImage | Reject]]] = deque()
        try:
            for request in requests:
                waiting.append(threads.submit(_load, request, preparation, decoders))
                if len(waiting) > num_ahead:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _most(preparation: Preparation) -> int:
    """Images of a request: the crops of all must fit a decoder's slot."""
    largest = 3 * max(height * width for height, width in preparation.sizes_px)
    return max(1, min(IMAGES_PER_REQUEST, SLOT_BYTES // largest))


def _requests(
    items: Iterable[DocumentImage | Reject], most: int
) -> Iterator[list[DocumentImage | Reject]]:
    request: list[DocumentImage | Reject] = []
    size_bytes = 0
    for item in items:
        request.append(item)
        size_bytes += len(item.image.data) if isinstance(item, DocumentImage) else 0
        if len(request) == most or size_bytes >= BYTES_PER_REQUEST:
            yield request
            request, size_bytes = [], 0
    if request:
        yield request


def _load(
    request: list[DocumentImage | Reject], preparation: Preparation, decoders: Decoders
) -> list[LoadedImage | Reject]:
    pending = [item for item in request if isinstance(item, DocumentImage)]
    try:
        found = decoders.prepare(preparation, [item.image.data for item in pending])
    except RuntimeError as error:
        names = ", ".join(item.image.name for item in pending)
        raise RuntimeError(f"{error} (images {names})") from error
    prepared = iter(found)
    return [item if isinstance(item, Reject) else _loaded(item, next(prepared)) for item in request]


def _loaded(item: DocumentImage, prepared: Prepared | Undecodable) -> LoadedImage | Reject:
    if isinstance(prepared, Undecodable):
        detail = f"{item.image.name}: {prepared.detail}"
        return Reject(item.document.key, prepared.reason, detail)
    return LoadedImage(document=item.document, image_index=item.image_index, prepared=prepared)
