"""What captions of the drawn world say, read back: colours, shapes, numbers and relations."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Color = Literal["red", "yellow", "green", "cyan", "blue", "purple"]
Shape = Literal["circle", "square", "triangle"]
Relation = Literal["left of", "right of", "above", "below"]

COLORS: tuple[Color, ...] = ("red", "yellow", "green", "cyan", "blue", "purple")
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle")
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")

_NUMBERS: Mapping[str, int] = MappingProxyType(
    {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
)
_PLURALS: Mapping[str, Shape] = MappingProxyType({f"{shape}s": shape for shape in SHAPES})


@dataclass(frozen=True, slots=True)
class Named:
    """One thing that a caption names; a part that it leaves open is None."""

    color: Color | None
    shape: Shape | None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What a caption says: `things[0]` stands in `relation` to `things[1]`."""

    things: tuple[Named, ...]
    relation: Relation | None = None

    def looks(self) -> list[tuple[Color | None, Shape | None]]:
        """Every thing by itself, a count of two as two."""
        return [(thing.color, thing.shape) for thing in self.things for _ in range(thing.count)]


def read_caption(caption: str) -> Reading:
    """Reads a caption; words that are not of the drawn world are passed over.

    A colour belongs to the shape that follows it, or to the one before in "a circle that is red".
    """
    things: list[Named] = []
    color: Color | None = None
    count = 1
    previous = ""
    for word in re.findall(r"[a-z]+", caption.lower()):
        shape = _shape(word)
        if word in _NUMBERS:
            if color is not None:
                things.append(Named(color, None, count))
            color, count = None, _NUMBERS[word]
        elif word in COLORS:
            if previous == "is" and things and things[-1].color is None:
                things[-1] = Named(_color(word), things[-1].shape, things[-1].count)
            else:
                color = _color(word)
        elif shape is not None:
            things.append(Named(color, shape, count))
            color, count = None, 1
        previous = word
    if color is not None:
        things.append(Named(color, None, count))
    return Reading(tuple(things), _relation(caption.lower()))


def looks_of(scene: Mapping[str, Any]) -> list[tuple[Color | None, Shape | None]]:
    """Colour and shape of every object of a drawn document's metadata."""
    objects: Sequence[Mapping[str, Any]] = scene["objects"]
    return [(one["color"], one["shape"]) for one in objects]


def _color(word: str) -> Color:
    return COLORS[COLORS.index(word)]


def _shape(word: str) -> Shape | None:
    singular = _PLURALS.get(word, word)
    return next((shape for shape in SHAPES if shape == singular), None)


def _relation(caption: str) -> Relation | None:
    return next((relation for relation in RELATIONS if relation in caption), None)
