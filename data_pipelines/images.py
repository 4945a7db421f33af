"""The images of documents, decoded and cropped: what the stages that look at pixels share."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8

from data_pipelines.ahead import Ahead
from data_pipelines.decode import Reject as Undecodable
from data_pipelines.decoders import Decoders
from data_pipelines.documents import Document, Image, Rejected
from data_pipelines.preparation import Preparation, Prepared
from transfusion.artifacts.shards import Reject

AHEAD_PER_DECODER = 4
"""Images that wait, encoded or decoded, for each decoder: enough that a slow one does not hold up the others."""


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
    """Every image of the documents in their order, or why there is none; a few are read and decoded ahead."""
    num_ahead = AHEAD_PER_DECODER * decoders.num_processes
    with (
        Ahead(documents, num_ahead) as found,
        ThreadPoolExecutor(decoders.num_processes) as threads,
    ):
        waiting: deque[Future[LoadedImage | Reject]] = deque()
        try:
            for job in _jobs(found, preparation, decoders):
                waiting.append(threads.submit(job))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _jobs(
    documents: Iterable[Document | Rejected], preparation: Preparation, decoders: Decoders
) -> Iterator[Callable[[], LoadedImage | Reject]]:
    keys: set[str] = set()
    for document in documents:
        if isinstance(document, Rejected):
            yield partial(Reject, document.key, document.reason, document.detail)
        elif document.key in keys:
            yield partial(Reject, document.key, "duplicate_key", "another row has the same key")
        else:
            keys.add(document.key)
            images = [segment for segment in document.segments if isinstance(segment, Image)]
            for index, image in enumerate(images):
                yield partial(_load, document, index, image, preparation, decoders)


def _load(
    document: Document, index: int, image: Image, preparation: Preparation, decoders: Decoders
) -> LoadedImage | Reject:
    try:
        prepared = decoders.prepare(preparation, image.data)
    except Undecodable as reject:
        return Reject(document.key, reject.reason, f"{image.name}: {reject.detail}")
    except RuntimeError as error:
        raise RuntimeError(f"{document.key}, {image.name}: {error}") from error
    return LoadedImage(document=document, image_index=index, prepared=prepared)
