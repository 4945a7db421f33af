"""Scenes: which objects there are, and where.

Lengths are in thirty-seconds of the image's side, so that a scene is the same at every size. x runs right, y down.
Objects are laid out in the cells of a grid, each with a margin, so they never touch one another or the edge.
"""

from dataclasses import dataclass
from typing import Literal

from data_pipelines.shapes_world.draws import Draws
from transfusion.config import JSON

Color = Literal["red", "yellow", "green", "cyan", "blue", "purple"]
Shape = Literal["circle", "square", "triangle"]
Kind = Literal["single", "count", "group", "relation"]

COLORS: tuple[Color, ...] = ("red", "yellow", "green", "cyan", "blue", "purple")
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle")
KINDS: tuple[Kind, ...] = ("single", "count", "group", "relation")

SIDE = 32.0
MARGIN = 1.0

SQUARE_HALF = 0.9
"""Half the side of a square, in radii: shapes of one radius look about as large."""

TRIANGLE_CIRCUMRADIUS = 1.2
"""Centre to corner of an equilateral triangle that stands on its base, in radii."""

_HALF_SQRT3 = 0.8660254037844386


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A shape of one colour. (x, y) is its centre of mass."""

    color: Color
    shape: Shape
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be drawn and said.

    In a `relation` the first object stands left of the second, or above it.
    """

    kind: Kind
    objects: tuple[SceneObject, ...]
    axis: Literal["none", "horizontal", "vertical"]
    background: tuple[int, int, int]

    def to_json(self) -> dict[str, JSON]:
        """The scene as plain JSON, for a document's metadata."""
        return {
            "kind": self.kind,
            "axis": self.axis,
            "objects": [
                {"color": o.color, "shape": o.shape, "x": o.x, "y": o.y, "radius": o.radius}
                for o in self.objects
            ],
        }


@dataclass(frozen=True, slots=True)
class Cell:
    """A rectangle that one object may fill."""

    left: float
    top: float
    right: float
    bottom: float


def draw_scene(draws: Draws, *, kind_weights: dict[Kind, float], max_objects: int) -> Scene:
    """A scene of at most `max_objects`; kinds that need more than that are never drawn."""
    kinds = [kind for kind in KINDS if kind == "single" or max_objects > 1]
    kind = draws.weighted(kinds, [kind_weights[kind] for kind in kinds])
    axis: Literal["none", "horizontal", "vertical"] = "none"
    if kind == "single":
        objects = [_place(draws, draws.choice(COLORS), draws.choice(SHAPES), whole(), 5.0, 10.0)]
    elif kind == "relation":
        axis = draws.choice(("horizontal", "vertical"))
        objects = [
            _place(draws, color, shape, cell, 5.0, 6.5)
            for (color, shape), cell in zip(_distinct(draws, 2), _halves(axis), strict=True)
        ]
    else:
        number = 2 if max_objects == 2 else draws.weighted((2, 3), (0.65, 0.35))
        if kind == "count":
            looks = [(draws.choice(COLORS), draws.choice(SHAPES))] * number
        else:
            looks = _distinct(draws, number)
        cells = draws.shuffled(_quarters())[:number]
        largest = 6.0 if number == 2 else 5.5
        radius = draws.uniform(4.5, largest)
        objects = [
            _place(draws, color, shape, cell, radius, radius)
            for (color, shape), cell in zip(looks, cells, strict=True)
        ]
    return Scene(kind, tuple(objects), axis, ground(draws))


def ground(draws: Draws) -> tuple[int, int, int]:
    """A light, hardly tinted grey for the background."""
    grey = draws.uniform(238.0, 251.0)
    red, green, blue = (int(grey + draws.uniform(-3.0, 4.0)) for _ in range(3))
    return red, green, blue


def _distinct(draws: Draws, number: int) -> list[tuple[Color, Shape]]:
    """Looks of which no two agree in both colour and shape."""
    looks = [(color, shape) for color in COLORS for shape in SHAPES]
    return draws.shuffled(looks)[:number]


def whole() -> Cell:
    """All of the image but its margin."""
    return Cell(MARGIN, MARGIN, SIDE - MARGIN, SIDE - MARGIN)


def _halves(axis: Literal["none", "horizontal", "vertical"]) -> list[Cell]:
    near, far, middle = MARGIN, SIDE - MARGIN, SIDE / 2
    # The other axis is narrowed: "left of" should not be mostly above.
    low, high = SIDE / 2 - 9, SIDE / 2 + 9
    if axis == "horizontal":
        return [Cell(near, low, middle - 1, high), Cell(middle + 1, low, far, high)]
    return [Cell(low, near, high, middle - 1), Cell(low, middle + 1, high, far)]


def _quarters() -> list[Cell]:
    spans = ((MARGIN, SIDE / 2 - 1), (SIDE / 2 + 1, SIDE - MARGIN))
    return [Cell(x0, y0, x1, y1) for y0, y1 in spans for x0, x1 in spans]


def _place(
    draws: Draws, color: Color, shape: Shape, cell: Cell, smallest: float, largest: float
) -> SceneObject:
    return SceneObject(color, shape, *place(draws, shape, cell, smallest, largest))


def place(
    draws: Draws, shape: Shape, cell: Cell, smallest: float, largest: float
) -> tuple[float, float, float]:
    """x, y and radius of a shape within a cell; no larger than fits."""
    left, up, right, down = reach(shape)
    fits = min((cell.right - cell.left) / (left + right), (cell.bottom - cell.top) / (up + down))
    radius = round(min(draws.uniform(smallest, largest), fits), 3)
    x = draws.uniform(
        cell.left + left * radius, max(cell.right - right * radius, cell.left + left * radius)
    )
    y = draws.uniform(
        cell.top + up * radius, max(cell.bottom - down * radius, cell.top + up * radius)
    )
    return round(x, 3), round(y, 3), radius


def reach(shape: Shape) -> tuple[float, float, float, float]:
    """How far a shape extends from its centre to the left, up, right and down, in radii."""
    if shape == "circle":
        return (1.0, 1.0, 1.0, 1.0)
    if shape == "square":
        return (SQUARE_HALF,) * 4
    across = TRIANGLE_CIRCUMRADIUS * _HALF_SQRT3
    return (across, TRIANGLE_CIRCUMRADIUS, across, TRIANGLE_CIRCUMRADIUS / 2)
