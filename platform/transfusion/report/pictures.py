"""Images as data URIs: bounded in number and in size, so that the page stays one file that opens anywhere."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the page."""

    uri: str
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        """Whether enlarging should show its pixels instead of blurring them."""
        return max(self.width, self.height) <= 64


class Album:
    """Embeds images and counts down how many more may be; callers look at `left`."""

    def __init__(self, *, max_images: int, max_image_px: int) -> None:
        self.left = max_images
        self._max_image_px = max_image_px

    def add(self, data: bytes, *, widths: int = 1) -> Picture:
        """Embeds an encoded image as PNG, scaled down if it is large; a strip may be several `widths` long."""
        self.left -= 1
        longest = widths * self._max_image_px
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if image.format != "PNG" or max(width, height) > longest:
                image.thumbnail((longest, longest))
                width, height = image.size
                sink = io.BytesIO()
                image.convert("RGB").save(sink, "PNG")
                data = sink.getvalue()
        encoded = base64.b64encode(data).decode()
        return Picture(f"data:image/png;base64,{encoded}", width, height)


def psnr_db(original: bytes, copy: bytes) -> float:
    """Peak signal to noise ratio of two encoded images of one size, in decibels; 99 when they are equal."""
    error = float(np.mean((_values(original) - _values(copy)) ** 2))
    return 10 * math.log10(255**2 / error) if error else 99.0


def _values(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), np.float64)
