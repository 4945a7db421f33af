"""Pixels of a striped object on a light ground, anti-aliased, the same bytes on every machine.

All hues have the same chroma and the same mean of red, green and blue: no hue is to be told by its lightness.
Sines and cosines, whose last bits are a library's own, are rounded to whole numbers at once; what follows is the
same everywhere. Axes: h, w = pixels.
"""

import math

import numpy as np
from jaxtyping import Int64, UInt8

from data_pipelines.shapes_world.drawing import SAMPLES, cover
from data_pipelines.shapes_world.scene import SIDE
from data_pipelines.textures_world.scene import Texture

MEAN, CHROMA = 140, 110
"""Of a colour's red, green and blue: each is between 30 and 250."""

_LEVELS = 256
_UNIT = 1 << 16


def draw(texture: Texture, size_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """The scene as an image of that side."""
    pixels = np.empty((size_px, size_px, 3), dtype=np.int64)
    pixels[:] = texture.background
    window, covered = cover(texture.shape, texture.x, texture.y, texture.radius, size_px)
    full = SAMPLES * SAMPLES
    light = _light(texture, size_px)[window][..., None]
    color = (np.array(rgb(texture.hue_deg)) * light + _LEVELS // 2) // _LEVELS
    pixels[window] = (pixels[window] * (full - covered) + color * covered + full // 2) // full
    return pixels.astype(np.uint8)


def rgb(hue_deg: float) -> tuple[int, int, int]:
    """The colour of a hue: a circle around grey on which red, green and blue are a third of a turn apart."""
    red, green, blue = (
        round(MEAN + CHROMA * math.cos(math.radians(hue_deg - third))) for third in (0, 120, 240)
    )
    return red, green, blue


def _light(texture: Texture, size_px: int) -> Int64[np.ndarray, "h w"]:
    """What the stripes leave of the light in each pixel, of `_LEVELS`: a triangle wave across them."""
    angle = math.radians(texture.direction_deg)
    across_x, across_y = round(math.sin(angle) * _UNIT), round(math.cos(angle) * _UNIT)
    at = (np.arange(size_px) + 0.5) * (SIDE / size_px)
    distance = (at[None, :] * across_x + at[:, None] * across_y) / _UNIT
    turns = distance / texture.period + texture.phase
    wave = np.abs(2 * (turns - np.floor(turns)) - 1)
    return _LEVELS - np.floor(_LEVELS * texture.contrast * wave).astype(np.int64)
