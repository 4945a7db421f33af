"""What captions of striped objects say, and prompts in the same words."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Shape = Literal["circle", "square", "triangle"]

SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle")

_STEP_DEG = 5
"""Hues and directions are named to so many degrees."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to ask for."""

    shape: Shape
    hue_deg: int
    direction_deg: int

    @property
    def text(self) -> str:
        """In the words of captions."""
        return f"a {self.shape} of hue {self.hue_deg:03} with stripes at {self.direction_deg:03} degrees"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says; None where it says nothing that can be meant."""

    hue_deg: float | None
    direction_deg: float | None


def make_prompts(count: int, seed: int) -> list[Prompt]:
    """So many prompts: hues and directions evenly spread over their turns, in random pairs."""
    draw = random.Random(f"textures/{seed}")  # noqa: S311 a sample of prompts, no secret
    hues, directions = _spread(360, count, draw), _spread(180, count, draw)
    return [
        Prompt(draw.choice(SHAPES), hue, direction)
        for hue, direction in zip(hues, directions, strict=True)
    ]


def read_caption(caption: str) -> Reading:
    """Reads a caption; other words are passed over."""
    hue = re.search(r"\bhue (\d{1,3})\b", caption)
    direction = re.search(r"\bat (\d{1,3}) degrees\b", caption)
    return Reading(_within(hue, 360), _within(direction, 180))


def is_texture(scene: Mapping[str, Any]) -> bool:
    """Whether a document's metadata tells of a striped object."""
    return "hue_deg" in scene and "direction_deg" in scene


def _spread(turn_deg: int, count: int, draw: random.Random) -> list[int]:
    every = list(range(0, turn_deg, _STEP_DEG))
    values = [every[index * len(every) // count % len(every)] for index in range(count)]
    draw.shuffle(values)
    return values


def _within(found: re.Match[str] | None, turn_deg: int) -> float | None:
    value = int(found.group(1)) if found else turn_deg
    return float(value) if value < turn_deg else None
