"""Scores as people read them: big numbers with their ceilings, a bar for each task, and every metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transfusion.report.formats import decimal, percent

CEILINGS = {"real": "real images", "reconstruction": "reconstructions"}
"""What the same reader scores on images that are as good as they get, by the metric's name behind `ceiling.`"""

SINGLE = ("single_object", "colors")
SEVERAL = ("two_objects", "counting", "position", "color_attribution")
"""Tasks by how many objects they ask for: the ceilings differ."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A big number."""

    label: str
    value: str
    beside: str
    """What it is to be compared with."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The score of one task, from 0 to 1, and marks for the ceilings that are known."""

    label: str
    value: float
    marks: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Headline:
    metric: str
    label: str
    show: Callable[[float], str] = percent
    beside: tuple[tuple[str, str], ...] = ()


HEADLINES = (
    _Headline("single_object.color_accuracy", "images: colour right"),
    _Headline("single_object.color_shape_accuracy", "images: colour and shape right"),
    _Headline("caption.color_accuracy", "captions: colour right"),
    _Headline(
        "textures.hue_within_15",
        "images: hue within 15 degrees",
        beside=(
            ("textures.real.hue_within_15", "real images"),
            ("textures.reconstruction.hue_within_15", "reconstructions"),
        ),
    ),
    _Headline(
        "edits.accuracy",
        "edits: nearest to what was asked",
        beside=(("edits.unchanged_accuracy", "left as it was"), ("edits.chance", "chance")),
    ),
    _Headline("nearest.copies", "drawings that copy a training image"),
    _Headline(
        "text.bits_per_byte",
        "held-out text, bits per byte",
        decimal,
        (("text.unigram_bits_per_byte", "unigram model"),),
    ),
    _Headline("autoencoder.psnr_db", "autoencoder, PSNR in dB", decimal),
)
"""What the page opens with, where the evaluation has it."""


def headline_tiles(metrics: Mapping[str, float]) -> list[Tile]:
    """The big numbers of those metrics that there are."""
    return [
        Tile(one.label, one.show(metrics[one.metric]), _beside(one, metrics))
        for one in HEADLINES
        if one.metric in metrics
    ]


def _beside(headline: _Headline, metrics: Mapping[str, float]) -> str:
    told = [
        f"{name} {headline.show(metrics[key])}" for key, name in headline.beside if key in metrics
    ]
    told += [
        f"{CEILINGS[key]} {percent(value)}"
        for key, value in ceilings(headline.metric, metrics).items()
    ]
    return ", ".join(told)


def ceilings(metric: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """What real images and reconstructions score where generated ones are judged by that metric."""
    task, _, accuracy = metric.partition(".")
    if task in SINGLE:
        rest = accuracy
    elif task in SEVERAL:
        rest = f"several_objects.{accuracy}"
    else:
        return {}
    found = {name: metrics.get(f"ceiling.{name}.{rest}") for name in CEILINGS}
    return {name: value for name, value in found.items() if value is not None}


def task_bars(metrics: Mapping[str, float]) -> list[Bar]:
    """A bar for the `<task>.accuracy` of each task that was judged."""
    return [
        Bar(task.replace("_", " "), metrics[name], ceilings(name, metrics))
        for task in (*SINGLE, *SEVERAL)
        for name in [f"{task}.accuracy"]
        if name in metrics
    ]
