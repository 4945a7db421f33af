"""Hue and stripes of the object in an image, measured from its pixels.

The object is what is coloured; the ground hardly is. Its hue is the angle of the summed chroma of its pixels: each
counts as much as it is coloured, and an anti-aliased edge, a mix of ground and object, as far as it is object.
The direction of its stripes is that along which the light changes least, by the structure tensor over the inside
of the object: its outline must not count as a stripe.

Axes: h, w = pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

_MIN_CHROMA = 20.0
"""How far from grey, in steps of 255, a pixel of an object is at least.

Drawn grounds have up to 5, the darkest stripes 33 and more.
"""

_MIN_AREA = 12 / 1024
"""Smallest object, as a part of the image."""

_SQRT3 = math.sqrt(3.0)


@dataclass(frozen=True, slots=True)
class Look:
    """What an image shows; None where there is nothing to measure."""

    hue_deg: float | None
    """In [0, 360): 0 is red, 120 green, 240 blue."""
    direction_deg: float | None
    """Which way the stripes run, in [0, 180): 0 is level, 90 upright, 45 rising to the right."""


def read_look(pixels: UInt8[np.ndarray, "h w 3"]) -> Look:
    """Measures an image."""
    image = pixels.astype(np.float64)
    along, aside = _chroma(image)
    member = np.hypot(along, aside) > _MIN_CHROMA
    if member.sum() < _MIN_AREA * member.size:
        return Look(None, None)
    total_along, total_aside = float(along[member].sum()), float(aside[member].sum())
    hue = math.degrees(math.atan2(total_aside, total_along)) % 360.0
    return Look(hue, _direction(image.mean(axis=-1), _inside(_inside(member))))


def _chroma(
    image: Float[np.ndarray, "h w 3"],
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Red, green and blue as a vector in the plane across grey, on which they are a third of a turn apart."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (2 * red - green - blue) / 3, (green - blue) / _SQRT3


def _inside(member: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose eight neighbours are members too; beyond the image's edge is none."""
    padded = np.pad(member, 1)
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]


def _direction(light: Float[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]) -> float | None:
    """Across the gradients, whose signs do not count: their doubled angles are summed by their squared lengths.

    Gradients are Scharr's, whose angles are true within half a degree for stripes as wide as these.
    """
    padded = np.pad(light, 1, mode="edge")
    smooth_down = 3 * padded[:-2] + 10 * padded[1:-1] + 3 * padded[2:]
    smooth_across = 3 * padded[:, :-2] + 10 * padded[:, 1:-1] + 3 * padded[:, 2:]
    across = (smooth_down[:, 2:] - smooth_down[:, :-2])[inside]
    down = (smooth_across[2:] - smooth_across[:-2])[inside]
    double_cos = float((across**2 - down**2).sum())
    double_sin = float((2 * across * down).sum())
    if math.hypot(double_cos, double_sin) < 1e-6:
        return None
    # y runs down and directions are told counter-clockwise; stripes stand at a right angle to the gradient.
    return (90.0 - math.degrees(math.atan2(double_sin, double_cos)) / 2) % 180.0
