"""The charts of a run's curves: which there are, their titles, order and scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from markupsafe import Markup

from transfusion.artifacts.artifact import Artifact
from transfusion.report.areas import area_chart
from transfusion.report.charts import Line, Role, line_chart
from transfusion.report.curves import Curve, Metrics, Point, read_metrics, smooth

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
    "lm_loss": "Next tokens: loss per token, nats",
    "text_loss": "Of these, text: loss per token, nats",
    "code_loss": "Of these, images: loss per code, nats",
    "z_loss": "z-loss, with its weight",
    "diffusion_loss": "Images: denoising loss",
    "absolute_error": "Mean absolute error",
    "kl": "KL divergence",
    "psnr_db": "Reconstruction, PSNR in dB",
    "grad_norm": "Gradient norm, before clipping",
    "lr": "Learning rate",
    "mfu": "MFU, % of the devices' peak",
    "tflops_per_s": "TFLOPs per second",
    "tokens_per_s": "Tokens per second",
    "images_per_s": "Images per second",
    "peak_memory_bytes": "Peak memory so far, GiB",
}
"""Headings of the curves that are known; also their order on the page."""

LINEAR = (
    "lr",
    "psnr_db",
    "mfu",
    "tflops_per_s",
    "tokens_per_s",
    "images_per_s",
    "peak_memory_bytes",
)
"""Curves of which a logarithm would mislead."""

EXACT = ("lr", "peak_memory_bytes")
"""Curves without noise: drawn as they are, not as running means."""

SHOWN_TIMES = {"mfu": 100.0, "peak_memory_bytes": 2.0**-30}
"""From the unit that is measured to the one that is shown."""

FAMILIES = {
    "Images: denoising loss by noise level": {
        "diffusion_loss_t0": "least noise",
        "diffusion_loss_t1": "less",
        "diffusion_loss_t2": "more",
        "diffusion_loss_t3": "most",
    },
    "Gradient norm by group of weights": {
        f"grad_norm_{group}": group
        for group in ("embeddings", "attention", "ffn", "adapter", "head")
    },
    "Stream behind the last block, RMS": {
        "stream_rms_text": "at text",
        "stream_rms_image": "at images",
    },
}
"""Curves that belong together, a chart each: the training stage's `measures`, and what each is called there."""


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
    """What was measured of every step beside its losses: by noise level, of gradients, of the stream."""
    families = [
        _family(title, members, metrics.train, max_points) for title, members in FAMILIES.items()
    ]
    return [
        *(chart for chart in families if chart.svg),
        *_single(metrics.train, ("grad_norm", "lr"), max_points),
    ]


def speed_charts(metrics: Metrics, max_points: int) -> list[Chart]:
    """Where the time of a step goes, what was counted a second, and memory."""
    rates = [name for name in metrics.timing if name.endswith("_per_s")]
    names = sorted([*rates, "mfu", "peak_memory_bytes"], key=order_of_curves)
    split = _split(metrics)
    return [*([split] if split.svg else []), *_single(metrics.timing, names, max_points)]


def step_parts(metrics: Metrics) -> dict[str, Curve]:
    """Seconds of each part of a step, leaving out the whole."""
    return {
        name.removesuffix("_s"): curve
        for name, curve in metrics.timing.items()
        if name.endswith("_s") and not name.endswith("_per_s") and name != "step_s"
    }


def _split(metrics: Metrics) -> Chart:
    """The page has the names of the parts above it, beside their means."""
    title = "Over the run, ms a step"
    lines = [
        Line(name=name, role=_role(index), curve=_times(curve, 1e3))
        for index, (name, curve) in enumerate(step_parts(metrics).items())
    ]
    return Chart(
        title=title,
        svg=Markup(area_chart(lines, label=title)),  # noqa: S704 escaped where it is made
        legend=[],
    )


def _family(
    title: str, members: Mapping[str, str], curves: Mapping[str, Curve], max_points: int
) -> Chart:
    """Running means: the noise of several lines in one chart would hide them all."""
    lines = [
        Line(name=name, role=_role(index), curve=smooth(curves.get(member, [])))
        for index, (member, name) in enumerate(members.items())
    ]
    chart = draw_chart(title, lines, max_points)
    # Of a single one too: its title does not say which it is.
    return replace(chart, legend=[(line.role, line.name) for line in lines if line.curve])


def _single(curves: Mapping[str, Curve], names: Sequence[str], max_points: int) -> list[Chart]:
    return [
        draw_chart(
            name,
            [
                Line(
                    name=name,
                    role="schedule" if name in EXACT else "train",
                    curve=_times(curves[name], SHOWN_TIMES.get(name, 1.0)),
                )
            ],
            max_points,
        )
        for name in names
        if name in curves
    ]


def _times(curve: Curve, factor: float) -> Curve:
    return [Point(point.step, point.value * factor) for point in curve]


def _role(index: int) -> Role:
    """The colour of the part with that number; there are eight."""
    return cast(Role, f"c{index % 8}")


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
