"""Metrics of a run as curves: read, thinned so that peaks survive, smoothed.

A metrics file has one JSON row a line: {"step", "kind": "train"|"validation", "values": {...}, "timing": {...}}.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A value at a step."""

    step: float
    value: float


Curve = list[Point]


class Metrics(NamedTuple):
    """Curves of one run by name. `validation` holds raw and, under `ema_` names, averaged weights."""

    train: dict[str, Curve]
    validation: dict[str, Curve]
    timing: dict[str, Curve]


def read_metrics(data: bytes) -> Metrics:
    """The curves of a metrics file; what is not a finite number is left out."""
    return curves_of(json.loads(line) for line in data.splitlines() if line.strip())


def curves_of(rows: Iterable[dict[str, Any]]) -> Metrics:
    """The same of its rows, which are not kept."""
    metrics = Metrics({}, {}, {})
    for row in rows:
        _add(metrics.validation if row["kind"] == "validation" else metrics.train, row, "values")
        if row["kind"] == "train":
            _add(metrics.timing, row, "timing")
    return metrics


def _add(curves: dict[str, Curve], row: dict[str, Any], part: str) -> None:
    for name, value in row.get(part, {}).items():
        if isinstance(value, int | float) and math.isfinite(value):
            curves.setdefault(name, []).append(Point(float(row["step"]), float(value)))


def thin(curve: Sequence[Point], max_points: int) -> Curve:
    """At most that many points: the ends, and the lowest and highest of each stretch between them."""
    if len(curve) <= max_points:
        return list(curve)
    inner = curve[1:-1]
    stretches = max((max_points - 2) // 2, 1)
    kept: set[Point] = {curve[0], curve[-1]}
    for index in range(stretches):
        part = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        kept |= {min(part, key=_value), max(part, key=_value)}
    return sorted(kept)


def smooth(curve: Sequence[Point]) -> Curve:
    """A centred mean over a thirtieth of the curve, so that noise does not hide the trend and nothing lags."""
    half = len(curve) // 60
    if half == 0:
        return list(curve)
    sums = [0.0]
    for point in curve:
        sums.append(sums[-1] + point.value)
    smoothed = []
    for index, point in enumerate(curve):
        # Curves begin steep, where a lopsided window would bend them, and end flat, where a short one is noise.
        before = min(half, index)
        after = min(before, len(curve) - 1 - index)
        total = sums[index + after + 1] - sums[index - before]
        smoothed.append(Point(point.step, total / (before + after + 1)))
    return smoothed


def last(curve: Sequence[Point] | None) -> float | None:
    """The value of the last step."""
    return curve[-1].value if curve else None


def mean(values: Iterable[float]) -> float:
    """The mean; NaN of nothing."""
    given = list(values)
    return sum(given) / len(given) if given else math.nan


def _value(point: Point) -> float:
    return point.value
