"""Numbers by which equal documents and equal images are found, from the index of a shard.

Axes: d = documents of a shard; i = images of documents that have several, without the first of each.
"""

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from transfusion.ingest.index import ShardIndex, digest_words


def held_out_numbers(index: ShardIndex) -> UInt64[np.ndarray, " d"]:
    """The first bytes of what identifies each document: by it documents are held out."""
    return _words(index.content, 0, ">u8")


def numbers_of_later_images(
    index: ShardIndex, left: Bool[np.ndarray, " d"]
) -> tuple[UInt64[np.ndarray, " i"], Int64[np.ndarray, " i"]]:
    """Numbers of the images but the first, and the place of their document among those that are left."""
    several = np.flatnonzero(left & (index.images > 1) & (index.first_image >= 0))
    if index.latents is None or not len(several):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    counts = index.images[several] - 1
    ends = np.cumsum(counts, dtype=np.int64)
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    rows = np.repeat(index.first_image[several] + 1, counts) + within
    numbers = digest_words(index.latents["sha256"]).byteswap()[rows]
    return numbers, np.repeat(np.cumsum(left)[several] - 1, counts)


def exact_numbers(index: ShardIndex) -> UInt64[np.ndarray, " d"]:
    """Of a pair its image, whatever is said of it; of other documents text, first image and number of images."""
    of_image, of_text = _words(index.content, 8, "<u8"), _words(index.text_content, 8, "<u8")
    # A number of its own for each number of images, and apart from those of pairs.
    count = index.images.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    has_image = index.first_image >= 0
    other = of_text ^ count ^ np.where(has_image, of_image, np.uint64(0))
    return np.where(index.is_pair, of_image, other)


def _words(
    digests: UInt8[np.ndarray, "d 32"], first_byte: int, kind: str
) -> UInt64[np.ndarray, " d"]:
    part = np.ascontiguousarray(digests[:, first_byte : first_byte + 8])
    return part.view(kind)[:, 0].astype(np.uint64)
