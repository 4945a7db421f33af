"""Line charts as inline SVG: no scripts, no fonts, colours from the page's style sheet."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transfusion.report.axes import Scale, across, bands, frame, grid, upwards
from transfusion.report.curves import Curve, Point, smooth, thin
from transfusion.report.formats import number

Role = Literal[
    "train", "schedule", "validation", "average", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"
]
"""What a line stands for: decides its colour, the same in every chart. Training is noisy; `c0` and so on are
several of a kind: runs that are compared, levels, groups, parts of a step."""

_LOG_FROM = 8.0
"""Highest over lowest from which a scale is logarithmic: less, and a straight one reads better."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    role: Role
    curve: Curve


def line_chart(
    lines: Sequence[Line], *, label: str, max_points: int, scale: Literal["auto", "linear"] = "auto"
) -> str:
    """An SVG of curves over steps: training noise faint with its trend over it, validation as dots.

    Args:
        label: What is shown, for readers that do not see it.
        scale: `auto` is logarithmic where values span most of an order of magnitude.
    """
    drawn = [line for line in lines if line.curve]
    if not drawn:
        return ""
    steps = [point.step for line in drawn for point in line.curve]
    first = 0.0 if min(steps) < 0.1 * max(steps) else min(steps)
    low, high, log = _value_range(drawn, allow_log=scale == "auto")
    x, y = across(first, max(steps)), upwards(low, high, log=log)

    def told(step: float) -> tuple[float, str]:
        near = [(line, _nearest(line.curve, step)) for line in drawn]
        text = "\n".join(f"{line.name} {number(point.value, 4)}" for line, point in near)
        return near[0][1].step, text

    parts = [*grid(x, y)]
    for line in drawn:
        parts += _line(line, x, y, max_points)
    return frame([*parts, *bands(x, told)], label=label)


def _value_range(lines: Sequence[Line], *, allow_log: bool) -> tuple[float, float, bool]:
    """Where the axis begins and ends; of the noise one value in a hundred may stick out at either end."""
    values = []
    for line in lines:
        values += [point.value for point in smooth(line.curve)]
        noise = sorted(point.value for point in line.curve)
        cut = len(noise) // 100
        values += [noise[cut], noise[-1 - cut]]
    low, high = min(values), max(values)
    if allow_log and low > 0 and high / low >= _LOG_FROM:
        return low / 1.1, high * 1.1, True
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room, False


def _line(line: Line, x: Scale, y: Scale, max_points: int) -> list[str]:
    curve = thin(line.curve, max_points)
    if line.role == "schedule":
        return [f'<path class="line train" d="{_path(curve, x, y)}"/>']
    if line.role != "train":
        dots = [
            f'<circle class="dot {line.role}" cx="{x(p.step):.1f}" cy="{y(p.value):.1f}" r="2.6"/>'
            for p in (curve if len(curve) <= 40 else ())
        ]
        return [f'<path class="line {line.role}" d="{_path(curve, x, y)}"/>', *dots]
    trend = smooth(line.curve)
    if len(trend) < 60:
        return [f'<path class="line train" d="{_path(curve, x, y)}"/>']
    stride = -(-len(trend) // max_points)
    kept = [*trend[:-1:stride], trend[-1]]
    return [
        f'<path class="noise" d="{_path(curve, x, y)}"/>',
        f'<path class="line train" d="{_path(kept, x, y)}"/>',
    ]


def _path(curve: Sequence[Point], x: Scale, y: Scale) -> str:
    if len(curve) == 1:
        # One point is a short stroke: a path of one point draws nothing.
        return f"M{x(curve[0].step) - 3:.1f} {y(curve[0].value):.1f}h6"
    return "M" + "L".join(f"{x(p.step):.1f} {y(p.value):.1f}" for p in curve)


def _nearest(curve: Sequence[Point], step: float) -> Point:
    at = bisect.bisect_left(curve, (step,))
    return min(curve[max(at - 1, 0) : at + 1], key=lambda point: abs(point.step - step))
