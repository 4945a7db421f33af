"""Scenes of one striped object, and what they are called.

Lengths are in thirty-seconds of the image's side, x runs right and y down, as in `shapes_world.scene`.
"""

from dataclasses import asdict, dataclass

from data_pipelines.shapes_world.draws import Draws
from data_pipelines.shapes_world.scene import SHAPES, Shape, ground, place, whole
from transfusion.config import JSON

CAPTION_STEP_DEG = 5
"""Captions round hue and direction to a multiple of it; pictures do not."""


@dataclass(frozen=True, slots=True)
class Texture:
    """A shape of some hue, with darker stripes across it. (x, y) is its centre of mass."""

    shape: Shape
    x: float
    y: float
    radius: float
    hue_deg: float
    """In [0, 360): 0 is red, 120 green, 240 blue."""
    direction_deg: float
    """Which way the stripes run, in [0, 180): 0 is level, 90 upright, 45 rising to the right."""
    contrast: float
    """How much of the light the middle of a dark stripe takes away."""
    period: float
    """From one dark stripe to the next."""
    phase: float
    """Where the stripes lie, in periods."""
    background: tuple[int, int, int]

    def to_json(self) -> dict[str, JSON]:
        """The scene as plain JSON, for a document's metadata."""
        return {key: value for key, value in asdict(self).items() if key != "background"}


def draw_texture(draws: Draws) -> Texture:
    """A large object, so that at 32 pixels three or four stripes cross it."""
    shape = draws.choice(SHAPES)
    x, y, radius = place(draws, shape, whole(), 9.5, 12.0)
    return Texture(
        shape=shape,
        x=x,
        y=y,
        radius=radius,
        hue_deg=draws.uniform(0.0, 360.0),
        direction_deg=draws.uniform(0.0, 180.0),
        contrast=draws.uniform(0.45, 0.7),
        period=draws.uniform(6.0, 8.0),
        phase=draws.uniform(),
        background=ground(draws),
    )


def caption(texture: Texture) -> str:
    """Shape, hue and direction. Always three digits: a digit is a token, and its place tells what it counts."""
    hue, direction = _rounded(texture.hue_deg, 360), _rounded(texture.direction_deg, 180)
    return f"a {texture.shape} of hue {hue:03} with stripes at {direction:03} degrees"


def _rounded(angle_deg: float, turn_deg: int) -> int:
    return int(angle_deg / CAPTION_STEP_DEG + 0.5) * CAPTION_STEP_DEG % turn_deg
