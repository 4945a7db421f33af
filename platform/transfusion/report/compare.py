"""Runs beside each other: what was set differently, what they scored, how they learned.

A run is whatever an artifact was made from, itself included; stages are matched by their names in the job.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

from transfusion.artifacts.artifact import Artifact
from transfusion.config import flattened
from transfusion.report.charts import Line, Role
from transfusion.report.curves import Curve, Metrics, last
from transfusion.report.figures import Chart, draw_chart, order_of_curves, read_run
from transfusion.report.formats import number
from transfusion.report.lineage import trace
from transfusion.report.page import render

MAX_RUNS = 6
"""As many as there are colours that can be told apart."""

LETTERS = "ABCDEF"

NOT_SET = "-"


@dataclass(frozen=True, kw_only=True)
class RunStage:
    """A stage of a run, ended or not."""

    uses: str
    version: int
    raw: str | None
    """Fingerprint of its raw input, where it has any."""
    config: Mapping[str, Any]
    curves: Metrics
    scores: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, artifact: Artifact) -> "RunStage":
        """A stage that ended."""
        manifest = artifact.manifest
        return cls(
            uses=manifest.uses,
            version=manifest.version,
            raw=manifest.payload.get("raw"),
            config=manifest.config,
            curves=read_run(artifact),
            scores=manifest.content.metrics,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One side of a comparison."""

    name: str
    """As the user gave it."""
    stages: Mapping[str, RunStage]
    """By the stage's name in its job."""

    @classmethod
    def of(
        cls,
        name: str,
        ends: Iterable[Artifact],
        unfinished: Mapping[str, RunStage] = MappingProxyType({}),
    ) -> "Run":
        """A run from its last artifacts, down to the raw input.

        Args:
            unfinished: Stages that have made no artifact yet, or never will.
        """
        ended = {
            ancestor.manifest.stage: RunStage.of(ancestor.artifact) for ancestor in trace(ends)
        }
        return cls(name=name, stages={**ended, **unfinished})

    @property
    def curves(self) -> dict[str, Metrics]:
        """Of the stages that train."""
        return {
            name: stage.curves
            for name, stage in self.stages.items()
            if stage.curves.train or stage.curves.validation
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing, and what it is in each run."""

    name: str
    values: tuple[Any, ...]
    """None where a run has no such thing."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is told."""

    names: tuple[str, ...]
    config: list[Row]
    """Values that are not the same in all runs, as `stage.key`, and the raw inputs that are not."""
    scores: list[Row]
    """Metrics of all stages."""
    learned: list[Row]
    """The last loss of each kind at the last step at which all runs were validated."""


def compare(runs: Sequence[Run]) -> Comparison:
    """Everything but the curves."""
    return Comparison(
        names=tuple(run.name for run in runs),
        config=_differences(_settings(runs)),
        scores=_rows([dict(_scores(run)) for run in runs]),
        learned=_learned(runs),
    )


def comparison_charts(runs: Sequence[Run], *, max_points: int = 600) -> list[Chart]:
    """A chart for each value that is validated, a line a run; of training where nothing is validated."""
    charts = []
    for stage in _names(run.curves for run in runs):
        curves = [_drawn(run.curves.get(stage)) for run in runs]
        for name in sorted(_names(curves), key=order_of_curves):
            lines = [
                Line(name=LETTERS[i], role=cast(Role, f"c{i}"), curve=curve.get(name, []))
                for i, curve in enumerate(curves)
            ]
            charts.append(draw_chart(name, lines, max_points, within=stage))
    return charts


def comparison_text(found: Comparison) -> str:
    """For a terminal."""
    lines = [f"{letter}  {name}" for letter, name in zip(LETTERS, found.names, strict=False)]
    for title, rows in (
        ("set differently", found.config),
        ("scores", found.scores),
        ("losses at the last step at which all were validated", found.learned),
    ):
        if rows:
            measured = rows is not found.config
            lines += ["", title, *_table(rows, difference=measured and len(found.names) == 2)]
    if not found.config:
        lines += ["", "nothing is set differently: all runs are of the same config"]
    return "\n".join(lines)


def comparison_page(runs: Sequence[Run]) -> str:
    """One self-contained HTML file, with the curves."""
    found = compare(runs)
    letters = LETTERS[: len(runs)]
    return render(
        {
            "title": f"{len(runs)} runs compared",
            "letters": letters,
            "runs": list(zip(letters, found.names, strict=True)),
            "found": found,
            "charts": comparison_charts(runs),
            "told": told,
        },
        template="compare.html",
    )


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of a stage that not all of them have, only which it is."""
    shared = set.intersection(*(set(run.stages) for run in runs))
    each: list[dict[str, Any]] = []
    for run in runs:
        settings: dict[str, Any] = {}
        for name, stage in run.stages.items():
            settings[f"{name}: uses"] = stage.uses
            if name not in shared:
                continue
            settings[f"{name}: version"] = stage.version
            settings[f"{name}: raw input"] = None if stage.raw is None else stage.raw[:12]
            for key, value in flattened(stage.config).items():
                settings[f"{name}.{key}"] = value
        each.append(settings)
    return each


def _scores(run: Run) -> Iterator[tuple[str, Any]]:
    for name, stage in run.stages.items():
        for score, value in stage.scores.items():
            yield f"{name}.{score}", value


def _differences(each: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [row for row in _rows(each) if any(value != row.values[0] for value in row.values)]


def _rows(each: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        Row(name=name, values=tuple(values.get(name) for values in each)) for name in _names(each)
    ]


def _learned(runs: Sequence[Run]) -> list[Row]:
    rows = []
    for stage in _names(run.curves for run in runs):
        validations = [
            run.curves[stage].validation for run in runs if run.curves.get(stage) is not None
        ]
        steps = [
            {point.step for curve in validation.values() for point in curve}
            for validation in validations
        ]
        common = set.intersection(*steps) if steps else set()
        if len(validations) < len(runs) or not common:
            continue
        step = max(common)
        for name in _names(validations):
            values = [
                last([point for point in validation.get(name, []) if point.step <= step])
                for validation in validations
            ]
            rows.append(Row(name=f"{stage}.{name} at {step:,.0f}", values=tuple(values)))
    return rows


def _drawn(metrics: Metrics | None) -> Mapping[str, Curve]:
    if metrics is None:
        return {}
    losses = {name: curve for name, curve in metrics.train.items() if name.endswith("loss")}
    return losses | metrics.validation


def _names(each: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of all, in the order in which they first come."""
    return list(dict.fromkeys(name for one in each for name in one))


def _table(rows: Sequence[Row], *, difference: bool) -> list[str]:
    texts = [[row.name, *map(told, row.values)] for row in rows]
    for row, text in zip(rows, texts, strict=True):
        if difference and all(_is_number(value) for value in row.values):
            first, second = row.values
            text.append(f"{second - first:+.4g}" if second != first else "")
        elif difference:
            text.append("")
    widths = [max(len(text[i]) for text in texts) for i in range(len(texts[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(text, widths, strict=True))
        ).rstrip()
        for text in texts
    ]


def told(value: Any) -> str:
    """A value as a cell of a table."""
    if value is None:
        return NOT_SET
    if _is_number(value):
        return number(value, 4) if isinstance(value, float) else f"{value:,}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
