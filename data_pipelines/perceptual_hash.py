"""A 64-bit hash of what an image looks like: nearly equal pictures differ in few bits.

It is the hash that the `imagehash` library calls `phash` (after Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010): the luma at 32 x 32, its two-dimensional cosine transform, and of the
8 x 8 lowest frequencies whether each is above their median, row by row, the first as the highest bit.
The transform is taken in integers, so that every machine computes the same bits.
"""

import functools
import math

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

SIDE_PX = 32
FREQUENCIES = 8


def perceptual_hash(pixels: UInt8[np.ndarray, "h w 3"]) -> int:
    """The hash as an unsigned number. Colour counts by its brightness only."""
    luma = Image.fromarray(pixels).convert("L")
    small = luma.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS).tobytes()
    values = np.frombuffer(small, np.uint8).reshape(SIDE_PX, SIDE_PX).astype(np.int64)
    # Off its mean: over a constant the rounded waves do not quite cancel out. The mean is the first coefficient.
    centred = values * values.size - values.sum()
    waves = _waves()
    spectrum = waves @ centred @ waves.T
    spectrum[0, 0] = values.sum() * values.size * waves[0, 0] ** 2
    ordered = np.sort(spectrum, axis=None)
    middle = len(ordered) // 2
    bits = (2 * spectrum > ordered[middle - 1] + ordered[middle]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _waves() -> Int64[np.ndarray, "8 32"]:
    """The lowest cosines, in units of 2^-12: sums of products stay far below 2^63."""
    places = np.arange(SIDE_PX) + 0.5
    angles = np.arange(FREQUENCIES)[:, None] * places[None] * (math.pi / SIDE_PX)
    return np.rint(np.cos(angles) * 4096).astype(np.int64)
