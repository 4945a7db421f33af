"""The charts of a run's curves: which there are, their titles, order and scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from transfusion.artifacts.artifact import Artifact
from transfusion.report.charts import Line, line_chart
from transfusion.report.curves import Metrics, read_metrics

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with its heading."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    """Role and name of each line."""


TITLES = {
    "loss": "Loss, all together",
    "lm_loss": "Text: loss per token, nats",
    "diffusion_loss": "Images: denoising loss",
    "absolute_error": "Mean absolute error",
    "kl": "KL divergence",
    "psnr_db": "Reconstruction, PSNR in dB",
    "grad_norm": "Gradient norm, before clipping",
    "lr": "Learning rate",
    "tokens_per_s": "Tokens per second",
    "images_per_s": "Images per second",
}
"""Headings of the curves that are known; also their order on the page."""

LINEAR = ("lr", "psnr_db", "tokens_per_s", "images_per_s")
"""Curves of which a logarithm would mislead."""


def read_run(artifact: Artifact) -> Metrics:
    """The curves of an artifact that was trained; none where it was not."""
    if not any(file.name == METRICS for file in artifact.manifest.content.files):
        return Metrics({}, {}, {})
    return read_metrics(artifact.read(METRICS))


def loss_charts(metrics: Metrics, max_points: int) -> list[Chart]:
    """A chart for each thing that is validated or is a loss: training, validation and averaged weights."""
    names = {name for name in metrics.train if name.endswith("loss") or name in metrics.validation}
    names |= {name for name in metrics.validation if not name.startswith("ema_")}
    return [
        draw_chart(
            name,
            [
                Line(name="training", role="train", curve=metrics.train.get(name, [])),
                Line(name="validation", role="validation", curve=metrics.validation.get(name, [])),
                Line(
                    name="validation, averaged weights",
                    role="average",
                    curve=metrics.validation.get(f"ema_{name}", []),
                ),
            ],
            max_points,
        )
        for name in sorted(names, key=order_of_curves)
    ]


def measured_charts(metrics: Metrics, max_points: int) -> list[Chart]:
    """Gradient norm and learning rate."""
    return _single(metrics.train, ("grad_norm", "lr"), max_points)


def rate_charts(metrics: Metrics, max_points: int) -> list[Chart]:
    """Whatever was counted a second."""
    names = [name for name in metrics.timing if name.endswith("_per_s")]
    return _single(metrics.timing, sorted(names, key=order_of_curves), max_points)


def _single(curves: Mapping[str, Any], names: Sequence[str], max_points: int) -> list[Chart]:
    return [
        draw_chart(
            name,
            [Line(name=name, role="schedule" if name == "lr" else "train", curve=curves[name])],
            max_points,
        )
        for name in names
        if name in curves
    ]


def draw_chart(name: str, lines: Sequence[Line], max_points: int, *, within: str = "") -> Chart:
    """A chart of the curve that is called so, by runs or by kinds.

    Args:
        within: The stage, where a page shows several.
    """
    title = TITLES.get(name, name.replace("_", " "))
    title = f"{within}: {title}" if within else title
    drawn = [line for line in lines if line.curve]
    return Chart(
        title=title,
        svg=Markup(  # noqa: S704 escaped where it is made
            line_chart(
                drawn,
                label=title,
                max_points=max_points,
                scale="linear" if name in LINEAR else "auto",
            )
        ),
        legend=[(line.role, line.name) for line in drawn] if len(drawn) > 1 else [],
    )


def order_of_curves(name: str) -> tuple[int, str]:
    """Known curves first, by their place in `TITLES`."""
    known = list(TITLES)
    return (known.index(name) if name in known else len(known), name)
