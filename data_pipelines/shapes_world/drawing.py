"""Pixels of a scene: flat colours on a light ground, anti-aliased, the same bytes on every machine.

Each pixel counts how many of its 4 x 4 sample points a shape covers; all that follows is whole numbers.
Axes: h, w = pixels.
"""

import io
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image

from data_pipelines.shapes_world.scene import (
    SIDE,
    SQUARE_HALF,
    TRIANGLE_CIRCUMRADIUS,
    Color,
    Scene,
    Shape,
)

SAMPLES = 4

RGB: Mapping[Color, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (225, 40, 40),
        "yellow": (240, 200, 30),
        "green": (40, 165, 60),
        "cyan": (30, 190, 225),
        "blue": (45, 65, 225),
        "purple": (170, 45, 205),
    }
)

_SQRT3 = 1.7320508075688772


def draw(scene: Scene, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """The scene as an image of that side."""
    pixels = np.empty((size_px, size_px, 3), dtype=np.int64)
    pixels[:] = scene.background
    for one in scene.objects:
        window, covered = cover(one.shape, one.x, one.y, one.radius, size_px)
        full = SAMPLES * SAMPLES
        under = pixels[window]
        color = np.array(RGB[one.color])
        pixels[window] = (under * (full - covered) + color * covered + full // 2) // full
    return pixels.astype(np.uint8)


def cover(
    shape: Shape, x: float, y: float, radius: float, size_px: int
) -> tuple[tuple[slice, slice], Int64[np.ndarray, "h w 1"]]:
    """The pixels around a shape, and how many of the `SAMPLES` squared points of each it covers."""
    scale = size_px / SIDE
    reach = TRIANGLE_CIRCUMRADIUS * radius
    x0, x1 = _span(x - reach, x + reach, scale, size_px)
    y0, y1 = _span(y - reach, y + reach, scale, size_px)
    across = (np.arange(x0 * SAMPLES, x1 * SAMPLES) + 0.5) / (SAMPLES * scale) - x
    down = (np.arange(y0 * SAMPLES, y1 * SAMPLES) + 0.5) / (SAMPLES * scale) - y
    inside = _inside(shape, radius, across[None, :], down[:, None])
    covered = inside.reshape(y1 - y0, SAMPLES, x1 - x0, SAMPLES).sum(axis=(1, 3))
    return (slice(y0, y1), slice(x0, x1)), covered[..., None]


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The pixels as a PNG file; stored, not deflated: what deflate writes depends on its build."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def _span(low: float, high: float, scale: float, size_px: int) -> tuple[int, int]:
    return max(int(low * scale), 0), min(int(high * scale) + 1, size_px)


def _inside(
    shape: Shape, radius: float, x: Float[np.ndarray, "1 w"], y: Float[np.ndarray, "h 1"]
) -> Bool[np.ndarray, "h w"]:
    if shape == "circle":
        return x * x + y * y <= radius * radius
    if shape == "square":
        half = SQUARE_HALF * radius
        return (np.abs(x) <= half) & (np.abs(y) <= half)
    # Equilateral, apex up: a base at half the circumradius below the centre, and two sides.
    corner = TRIANGLE_CIRCUMRADIUS * radius
    return (y <= corner / 2) & (_SQRT3 * np.abs(x) - y <= corner)
