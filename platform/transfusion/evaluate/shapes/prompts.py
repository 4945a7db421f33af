"""GenEval's six tasks as prompts of the drawn world, with GenEval's metadata (tag, include, prompt).

Source: Ghosh et al. 2023 (GenEval), arXiv:2310.11513; the fields of its `evaluation_metadata.jsonl`.
A class is a shape here. Unlike GenEval's, every prompt names colours, as every caption does; the tasks
differ in what must come together: one object, two that share a colour, a number, one in other words, a relation,
two colours.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from transfusion.evaluate.config import TaskName
from transfusion.evaluate.shapes.words import COLORS, RELATIONS, SHAPES, Color, Relation, Shape

_NUMBERS: Mapping[int, str] = MappingProxyType({2: "two", 3: "three"})
_COLOR_PHRASES = (
    "a {shape} that is {color}",
    "one {color} {shape}",
    "there is a {color} {shape}",
    "a picture of a {color} {shape}",
    "a drawing of a {color} {shape}",
)


@dataclass(frozen=True, slots=True)
class Include:
    """Objects that an image must show."""

    color: Color
    shape: Shape
    count: int = 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to ask for, and what the image must then show: these objects and no others."""

    tag: TaskName
    text: str
    include: tuple[Include, ...]
    relation: Relation | None = None
    """Where the first object stands as seen from the second."""

    def metadata(self) -> dict[str, Any]:
        """The row of GenEval's metadata file; there an object's position refers to one listed before it."""
        include: list[dict[str, Any]] = [
            {"class": one.shape, "color": one.color, "count": one.count} for one in self.include
        ]
        if self.relation is not None:
            include.reverse()
            include[1]["position"] = [self.relation, 0]
        return {"tag": self.tag, "include": include, "prompt": self.text}


def make_prompts(
    task: TaskName, count: int, seed: int, *, class_prompt: str | None = None
) -> list[Prompt]:
    """So many prompts of a task, drawn without repeats until all there are were drawn once.

    Args:
        class_prompt: Words single objects as classes: `{label}` becomes "red circle".
    """
    every = TASKS[task]()
    if class_prompt is not None:
        every = [_of_its_class(prompt, class_prompt) for prompt in every]
    draw = random.Random(f"{task}/{seed}")  # noqa: S311 a sample of prompts, no secret
    prompts: list[Prompt] = []
    while len(prompts) < count:
        prompts.extend(draw.sample(every, len(every)))
    return prompts[:count]


def _single_object() -> list[Prompt]:
    return [
        Prompt("single_object", f"a {color} {shape}", (Include(color, shape),))
        for color in COLORS
        for shape in SHAPES
    ]


def _of_its_class(prompt: Prompt, worded: str) -> Prompt:
    if prompt.tag != "single_object":
        return prompt
    (one,) = prompt.include
    return replace(prompt, text=worded.replace("{label}", f"{one.color} {one.shape}"))


def _two_objects() -> list[Prompt]:
    return [
        Prompt("two_objects", f"a {color} {a} and a {color} {b}", _both(color, a, color, b))
        for color in COLORS
        for a in SHAPES
        for b in SHAPES
        if a != b
    ]


def _counting() -> list[Prompt]:
    return [
        Prompt("counting", f"{word} {color} {shape}s", (Include(color, shape, number),))
        for number, word in _NUMBERS.items()
        for color in COLORS
        for shape in SHAPES
    ]


def _colors() -> list[Prompt]:
    return [
        Prompt("colors", phrase.format(color=color, shape=shape), (Include(color, shape),))
        for phrase in _COLOR_PHRASES
        for color in COLORS
        for shape in SHAPES
    ]


def _position() -> list[Prompt]:
    return [
        Prompt("position", f"a {c} {a} {relation} a {d} {b}", _both(c, a, d, b), relation)
        for relation in RELATIONS
        for c, a, d, b in _pairs()
    ]


def _color_attribution() -> list[Prompt]:
    return [
        Prompt("color_attribution", f"a {c} {a} and a {d} {b}", _both(c, a, d, b))
        for c, a, d, b in _pairs()
    ]


def _pairs() -> list[tuple[Color, Shape, Color, Shape]]:
    """Two objects that differ in colour and in shape, so that either could be given the other's."""
    return [
        (c, a, d, b)
        for c in COLORS
        for a in SHAPES
        for d in COLORS
        for b in SHAPES
        if c != d and a != b
    ]


def _both(c: Color, a: Shape, d: Color, b: Shape) -> tuple[Include, Include]:
    return Include(c, a), Include(d, b)


TASKS: Mapping[TaskName, Callable[[], list[Prompt]]] = MappingProxyType(
    {
        "single_object": _single_object,
        "two_objects": _two_objects,
        "counting": _counting,
        "colors": _colors,
        "position": _position,
        "color_attribution": _color_attribution,
    }
)
