"""Decoded images gathered to micro-batches of one shape each. Axes: b = images, h w = pixels."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_pipelines.crop import Size
from data_pipelines.images import LoadedImage
from data_pipelines.preparation import Facts
from transfusion.artifacts.shards import Reject


class BatchRow(NamedTuple):
    """One image of a batch."""

    key: str
    """Key of its document."""
    image_index: int
    facts: Facts


class Batch(NamedTuple):
    """Images that are encoded together."""

    rows: list[BatchRow]
    pixels: UInt8[np.ndarray, "b h w 3"]
    """Always a whole micro-batch: what the rows do not fill is black."""


def micro_batches(
    images: Iterable[LoadedImage | Reject], micro_batch: int
) -> Iterator[Batch | Reject]:
    """Batches of images of one size, in an order that depends on nothing but the images'."""
    waiting: defaultdict[Size, list[LoadedImage]] = defaultdict(list)
    for image in images:
        if isinstance(image, Reject):
            yield image
            continue
        size = (image.pixels.shape[0], image.pixels.shape[1])
        waiting[size].append(image)
        if len(waiting[size]) == micro_batch:
            yield _batch(waiting.pop(size), micro_batch)
    for left in waiting.values():
        yield _batch(left, micro_batch)


def _batch(images: list[LoadedImage], micro_batch: int) -> Batch:
    pixels = np.empty((micro_batch, *images[0].pixels.shape), np.uint8)
    for place, image in zip(pixels, images, strict=False):
        place[...] = image.pixels
    pixels[len(images) :] = 0
    rows = [BatchRow(image.key, image.image_index, image.prepared.facts) for image in images]
    return Batch(rows, pixels)
