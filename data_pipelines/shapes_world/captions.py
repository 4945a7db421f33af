"""Captions: several phrasings of what is in a scene. Colours and shapes are always named."""

from collections.abc import Sequence

from data_pipelines.shapes_world.draws import Draws
from data_pipelines.shapes_world.scene import SIDE, Scene, SceneObject

OPENINGS = ("{}", "there is {}", "a picture of {}", "a drawing of {}")
_OPENING_WEIGHTS = (0.7, 0.1, 0.1, 0.1)
_NUMBERS = {2: "two", 3: "three"}
_SMALL, _LARGE = 6.25, 8.75
"""Radii below and above which an object that stands alone may be called small or large."""


def draw_caption(draws: Draws, scene: Scene) -> str:
    """One phrasing of the scene; the plainest is the commonest."""
    if scene.kind == "single":
        return _single(draws, scene.objects[0])
    if scene.kind == "count":
        one, number = scene.objects[0], _NUMBERS[len(scene.objects)]
        opening = draws.weighted(OPENINGS, _OPENING_WEIGHTS).replace("there is", "there are")
        return opening.format(f"{number} {one.color} {one.shape}s")
    opening = draws.weighted(OPENINGS, _OPENING_WEIGHTS)
    if scene.kind == "relation":
        return opening.format(_relation(draws, scene))
    return opening.format(_list([_noun(one) for one in draws.shuffled(scene.objects)]))


def _noun(one: SceneObject) -> str:
    return f"a {one.color} {one.shape}"


def _single(draws: Draws, one: SceneObject) -> str:
    wording = draws.weighted(
        ("plain", "opened", "that is", "one", "size", "place"), (0.5, 0.15, 0.08, 0.07, 0.1, 0.1)
    )
    if wording == "opened":
        return draws.choice(OPENINGS[1:]).format(_noun(one))
    if wording == "that is":
        return f"a {one.shape} that is {one.color}"
    if wording == "one":
        return f"one {one.color} {one.shape}"
    if wording == "size" and one.radius < _SMALL:
        return f"a small {one.color} {one.shape}"
    if wording == "size" and one.radius > _LARGE:
        return f"a large {one.color} {one.shape}"
    if wording == "place":
        return f"{_noun(one)} {_place(one)}"
    return _noun(one)


def _place(one: SceneObject) -> str:
    third = SIDE / 16
    across = "left" if one.x < SIDE / 2 - third else "right" if one.x > SIDE / 2 + third else ""
    down = "top" if one.y < SIDE / 2 - third else "bottom" if one.y > SIDE / 2 + third else ""
    if not across and not down:
        return "in the middle"
    return f"at the {down} {across}".rstrip() if down else f"on the {across}"


def _relation(draws: Draws, scene: Scene) -> str:
    first, second = scene.objects
    horizontal = scene.axis == "horizontal"
    word, converse = ("left of", "right of") if horizontal else ("above", "below")
    if draws.uniform() < 0.5:
        first, second, word = second, first, converse
    if horizontal and draws.uniform() < 0.3:
        word = f"to the {word}"
    return f"{_noun(first)} {word} {_noun(second)}"


def _list(nouns: Sequence[str]) -> str:
    return f"{', '.join(nouns[:-1])} and {nouns[-1]}"
