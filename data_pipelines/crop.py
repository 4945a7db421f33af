"""The crop: an image's largest centred rectangle of a wanted aspect, resampled to a wanted size.

Sizes are (height, width) in pixels. Axes: h, w = pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Size = tuple[int, int]


def nearest_size(original: Size, sizes_px: Sequence[Size]) -> Size:
    """The size whose aspect is nearest by the logarithm of the ratio; of two as near, the first."""
    aspect = math.log(original[0] / original[1])
    return min(sizes_px, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


def center_crop_resize(
    pixels: UInt8[np.ndarray, "h w 3"], size_px: int | Size
) -> UInt8[np.ndarray, "oh ow 3"]:
    """The crop, by Lanczos, after a box filter when it shrinks by much.

    An image that has the size already is returned unchanged.

    Args:
        size_px: Height and width, or the side of a square.
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    whole_height, whole_width = pixels.shape[:2]
    if whole_height * width >= whole_width * height:
        across, down = whole_width, max(1, round(whole_width * height / width))
    else:
        across, down = max(1, round(whole_height * width / height)), whole_height
    top, left = (whole_height - down) // 2, (whole_width - across) // 2
    part = pixels[top : top + down, left : left + across]
    if (down, across) == (height, width):
        return part.copy()
    resized = Image.fromarray(part).resize(
        (width, height), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    return np.array(resized, dtype=np.uint8)


def covering_size(original: Size, size_px: Size) -> Size:
    """The least size of the whole image at which its crop has still every wanted pixel."""
    scale = max(size_px[0] / original[0], size_px[1] / original[1])
    return math.ceil(original[0] * scale), math.ceil(original[1] * scale)
