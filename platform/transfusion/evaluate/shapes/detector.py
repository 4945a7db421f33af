"""An exact detector for the drawn world: which objects an image shows, and where.

A pixel's colour is the direction in which it departs from the background, so an anti-aliased or blurred edge
counts to its object. Connected pixels of one colour are an object. Its shape is the one of three ideal shapes,
fitted to it in place, size and softness, that leaves the smallest squared error.

Axes: h, w = pixels; c = colours; k = pixels of the image, flattened; n = candidates of a fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from transfusion.evaluate.shapes.words import COLORS, SHAPES, Color, Shape

PALETTE: Mapping[Color, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (225, 40, 40),
        "yellow": (240, 200, 30),
        "green": (40, 165, 60),
        "cyan": (30, 190, 225),
        "blue": (45, 65, 225),
        "purple": (170, 45, 205),
    }
)

_MIN_STRENGTH = 0.4
"""How far from the background to its colour a pixel must be to count to an object."""

_MIN_COSINE = 0.9
"""How near to a named colour's direction a pixel must be."""

_MIN_AREA = 12 / 1024
"""Smallest object, as a part of the image: a third of the smallest that is ever drawn."""

_MIN_CORE = 4 / 1024
"""An object has pixels whose four neighbours are its own, as a part of the image; a fringe has none."""

_MAX_MISFIT = 0.12
"""Squared error of the best fit, per area, above which an object has no named shape.

Drawn objects have up to 0.01, blurred, noisy or compressed ones up to 0.1; blobs of noise 0.15 and more.
"""

_SQRT3 = 1.7320508075688772


@dataclass(frozen=True, slots=True)
class Object:
    """An object in an image. (x, y) is its centre of mass and `area` its size, in pixels."""

    color: Color
    shape: Shape | Literal["unknown"]
    x: float
    y: float
    area: float


def detect(pixels: UInt8[np.ndarray, "h w 3"]) -> list[Object]:
    """The objects of an image, the largest first."""
    image = pixels.astype(np.float64)
    offset = _background(image) - image
    # Black stands last: what is nearest to grey is no colour's.
    named = np.array([*(PALETTE[color] for color in COLORS), (0, 0, 0)], dtype=np.float64)
    palette = _background(image) - named
    strengths = offset @ palette.T / (palette**2).sum(axis=1)
    smooth = _blur(offset)
    length = np.linalg.norm(smooth, axis=-1, keepdims=True) * np.linalg.norm(palette, axis=1)
    cosines = (smooth @ palette.T) / np.maximum(length, 1e-9)
    nearest = cosines.argmax(axis=-1)
    strength = np.take_along_axis(_blur(strengths), nearest[..., None], axis=-1)[..., 0]
    solid = (strength > _MIN_STRENGTH) & (cosines.max(axis=-1) > _MIN_COSINE)
    solid &= nearest < len(COLORS)

    num_pixels = nearest.size
    found = []
    taken = _components(np.where(solid, nearest, -1))
    for label in np.unique(taken[taken >= 0]):
        member = taken == label
        if member.sum() < _MIN_AREA * num_pixels or _core(member).sum() < _MIN_CORE * num_pixels:
            continue
        color = int(nearest[member][0])
        others = (taken >= 0) & ~member
        found.append(_measure(strengths[..., color], member, others, COLORS[color]))
    return sorted(found, key=lambda one: -one.area)


def _background(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, " 3"]:
    """The commonest light grey: the median of all pixels that are light and hardly coloured."""
    flat = image.reshape(-1, 3)
    low, high = flat.min(axis=1), flat.max(axis=1)
    light = flat[(low > 190) & (high - low < 40)]
    return np.median(light, axis=0) if len(light) else np.full(3, 255.0)


def _blur(field: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """A 1-2-1 binomial filter along both axes, edges repeated."""
    padded = np.pad(field, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _components(color: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Labels of connected pixels of one colour (edge to edge); -1 where the colour is -1.

    Each pixel takes the largest index among its like neighbours until nothing changes.
    """
    labels = np.where(color >= 0, np.arange(color.size).reshape(color.shape), -1)
    down = (color[1:] == color[:-1]) & (color[1:] >= 0)
    right = (color[:, 1:] == color[:, :-1]) & (color[:, 1:] >= 0)
    while True:
        before = labels.copy()
        best = np.where(down, np.maximum(labels[1:], labels[:-1]), -1)
        labels[1:] = np.maximum(labels[1:], best)
        labels[:-1] = np.maximum(labels[:-1], best)
        best = np.where(right, np.maximum(labels[:, 1:], labels[:, :-1]), -1)
        labels[:, 1:] = np.maximum(labels[:, 1:], best)
        labels[:, :-1] = np.maximum(labels[:, :-1], best)
        if np.array_equal(before, labels):
            return labels


def _core(member: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose four neighbours are members too; beyond the image's edge counts as a member."""
    padded = np.pad(member, 1, mode="edge")
    return member & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _measure(
    strength: Float[np.ndarray, "h w"],
    member: Bool[np.ndarray, "h w"],
    others: Bool[np.ndarray, "h w"],
    color: Color,
) -> Object:
    rows, columns = np.nonzero(member)
    top, bottom = max(rows.min() - 3, 0), min(rows.max() + 4, member.shape[0])
    left, right = max(columns.min() - 3, 0), min(columns.max() + 4, member.shape[1])
    window = (slice(top, bottom), slice(left, right))
    # A weak but even colour is a whole object: its own plateau counts as full cover.
    plateau = float(np.clip(np.median(strength[member & _core(member)]), 0.5, 1.3))
    cover = np.clip(strength[window] / plateau, 0, 1)
    cover = np.where(others[window] | (cover < 0.1), 0, cover)
    y, x = np.mgrid[top:bottom, left:right].astype(np.float64)
    area = float(cover.sum())
    centre_x, centre_y = float((cover * x).sum() / area), float((cover * y).sum() / area)
    shape = _fit(cover, x - centre_x, y - centre_y, area)
    return Object(color=color, shape=shape, x=centre_x + 0.5, y=centre_y + 0.5, area=area)


def _fit(
    cover: Float[np.ndarray, "h w"],
    x: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    area: float,
) -> Shape | Literal["unknown"]:
    """The shape whose best fit to the cover leaves the least error."""
    scales, shifts, softness = (0.92, 1.0, 1.08), (-0.5, 0.0, 0.5), (1.0, 2.0, 3.0)
    scale, dx, dy, soft = (
        axis.reshape(-1, 1, 1) for axis in np.meshgrid(scales, shifts, shifts, softness)
    )
    root = np.sqrt(area)
    misfit: dict[Shape, float] = {}
    for shape in SHAPES:
        outside = _distance(shape, (x - dx) / (scale * root), (y - dy) / (scale * root))
        ideal = np.clip(0.5 - outside * scale * root / soft, 0, 1)
        misfit[shape] = float(((ideal - cover) ** 2).sum(axis=(1, 2)).min()) / area
    best = min(misfit, key=lambda shape: misfit[shape])
    return best if misfit[best] <= _MAX_MISFIT else "unknown"


def _distance(
    shape: Shape, x: Float[np.ndarray, "n h w"], y: Float[np.ndarray, "n h w"]
) -> Float[np.ndarray, "n h w"]:
    """How far outside a shape of area 1 around its centre of mass a point lies; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 1 / np.sqrt(np.pi)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.5
    # Equilateral on its base; the inscribed circle's radius is half the circumscribed one's.
    corner = np.sqrt(4 / (3 * _SQRT3))
    return np.maximum(y, (_SQRT3 * np.abs(x) - y) / 2) - corner / 2
