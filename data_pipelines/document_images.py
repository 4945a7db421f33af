"""The images of documents, numbered; a key that comes twice is told once, in one place."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_pipelines.documents import Document, Image, Rejected
from transfusion.artifacts.shards import Reject


class DocumentImage(NamedTuple):
    """One image of a document."""

    document: Document
    image_index: int
    """Among the images of its document."""
    image: Image


def distinct(documents: Iterable[Document | Rejected]) -> Iterator[Document | Reject]:
    """The first document of each key; what the source rejected, and every further document of a key."""
    keys: set[str] = set()
    for document in documents:
        if isinstance(document, Rejected):
            yield Reject(document.key, document.reason, document.detail)
        elif document.key in keys:
            yield Reject(document.key, "duplicate_key", "another row has the same key")
        else:
            keys.add(document.key)
            yield document


def document_images(documents: Iterable[Document | Rejected]) -> Iterator[DocumentImage | Reject]:
    """Every image in the documents' order, and the rejects of `distinct`."""
    for document in distinct(documents):
        if isinstance(document, Reject):
            yield document
            continue
        images = [segment for segment in document.segments if isinstance(segment, Image)]
        for index, image in enumerate(images):
            yield DocumentImage(document, index, image)
