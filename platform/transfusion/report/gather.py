"""From artifacts to what the page and the summary show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import Outcomes
from transfusion.report.config import ReportConfig
from transfusion.report.curves import Metrics, last, mean
from transfusion.report.figures import (
    Chart,
    loss_charts,
    measured_charts,
    read_run,
    speed_charts,
    step_parts,
)
from transfusion.report.findings import read_findings
from transfusion.report.lineage import (
    Ancestor,
    RejectedRow,
    rejected_rows,
    source_shards,
    trace,
)
from transfusion.report.mixture import read_statistics
from transfusion.report.pictures import Album
from transfusion.report.pipeline import anchor, pipeline_diagram
from transfusion.report.previews import read_previews
from transfusion.report.scores import CEILINGS, headline_tiles, task_bars
from transfusion.report.steps import told_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """What a stage turned away."""

    stage: str
    outcomes: Outcomes
    rows: list[RejectedRow]
    """Some of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An artifact of the lineage as the page tells it."""

    anchor: str
    ancestor: Ancestor
    inputs: list[tuple[str, Ancestor]]
    shards: list[dict[str, Any]]


def gather(config: ReportConfig, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Everything that the template asks for."""
    evaluation, run, mixture = inputs["evaluation"], inputs["run"], inputs["mixture"]
    metrics = evaluation.manifest.content.metrics
    ancestors = trace([*inputs.values()])
    album = Album(max_images=config.max_images, max_image_px=config.max_image_px)
    previews = read_previews(run, album, limit=config.max_previews)
    findings = read_findings(evaluation, album, max_listed=config.max_listed)
    training = read_run(run)
    by_path = {one.artifact.path: one for one in ancestors}
    made = [one for one in ancestors if "seconds" in one.manifest.timings]
    return {
        "title": config.title,
        "num_parameters": run.metadata.get("num_parameters"),
        "store": run.store.uri,
        "tiles": headline_tiles(metrics),
        "bars": task_bars(metrics),
        "ceilings": CEILINGS,
        "metrics": metrics,
        "findings": findings,
        "charts": loss_charts(training, config.max_points)
        + measured_charts(training, config.max_points),
        "autoencoder_charts": _autoencoder_charts(inputs.get("autoencoder"), config.max_points),
        "speed_charts": speed_charts(training, config.max_points),
        "previews": previews,
        "told_steps": told_steps(training),
        "split": step_split(training),
        "data_share": data_share(training),
        "mixture": read_statistics(mixture),
        "stages": made,
        "total_s": sum(one.manifest.timings["seconds"] for one in made),
        "longest_s": max((one.manifest.timings["seconds"] for one in made), default=0.0),
        "refused": [_refused(one, config) for one in ancestors if _has_outcomes(one)],
        "pipeline": Markup(pipeline_diagram(ancestors)),  # noqa: S704 escaped where it is made
        "entries": [
            Entry(
                anchor=anchor(one),
                ancestor=one,
                inputs=[(role, by_path[path]) for role, path in one.inputs.items()],
                shards=source_shards(one, limit=config.max_listed),
            )
            for one in ancestors
        ],
        "max_listed": config.max_listed,
        "provenance": run.manifest.provenance,
    }


def step_split(metrics: Metrics) -> list[tuple[str, float]]:
    """Where a step's time goes: parts and their mean seconds, leaving out the whole."""
    return [
        (name, mean(point.value for point in curve)) for name, curve in step_parts(metrics).items()
    ]


def data_share(metrics: Metrics) -> float | None:
    """Part of the time of all steps that training waited for its batches; None where it was not measured."""
    waited, whole = (
        sum(point.value for point in metrics.timing.get(name, ())) for name in ("data_s", "step_s")
    )
    return waited / whole if whole and "data_s" in metrics.timing else None


def summarise(config: ReportConfig, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """The numbers of the page that a second run must come to again: no durations, no places."""
    training = read_run(inputs["run"])
    return {
        "title": config.title,
        "metrics": inputs["evaluation"].manifest.content.metrics,
        "training": {
            kind: {name: last(curve) for name, curve in curves.items()}
            for kind, curves in (("train", training.train), ("validation", training.validation))
        },
        "mixture": inputs["mixture"].metadata,
        "artifacts": {
            one.manifest.stage: {
                "uses": one.manifest.uses,
                "fingerprint": one.manifest.fingerprint,
                "digest": one.manifest.digest,
                "outcomes": outcomes.model_dump() if outcomes else None,
            }
            for one in trace([*inputs.values()])
            for outcomes in [one.manifest.content.outcomes]
        },
    }


def _autoencoder_charts(autoencoder: Artifact | None, max_points: int) -> list[Chart]:
    return loss_charts(read_run(autoencoder), max_points) if autoencoder else []


def _has_outcomes(ancestor: Ancestor) -> bool:
    return ancestor.manifest.content.outcomes is not None


def _refused(ancestor: Ancestor, config: ReportConfig) -> Refused:
    outcomes = ancestor.manifest.content.outcomes
    assert outcomes is not None
    return Refused(
        stage=ancestor.manifest.stage,
        outcomes=outcomes,
        rows=rejected_rows(ancestor, limit=config.max_listed),
    )
