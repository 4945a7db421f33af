"""Line charts as inline SVG: no scripts, no fonts, colours from the page's style sheet."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from transfusion.report.curves import Curve, Point, smooth, thin
from transfusion.report.formats import number

Role = Literal[
    "train", "schedule", "validation", "average", "run0", "run1", "run2", "run3", "run4", "run5"
]
"""What a line stands for: decides its colour, the same in every chart. Training is noisy; `run0` and so on are
runs that are compared."""

_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 28
_NUM_BANDS = 60
"""Stretches of a chart that tell their values when pointed at."""

_LOG_FROM = 8.0
"""Highest over lowest from which a scale is logarithmic: less, and a straight one reads better."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    role: Role
    curve: Curve


@dataclass(frozen=True)
class _Scale:
    """Maps values to places of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (self._of(self.low), self._of(self.high))
        part = (self._of(min(max(value, self.low), self.high)) - low) / ((high - low) or 1.0)
        return self.start + part * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value


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
    x = _Scale(first, max(steps), float(_LEFT), float(_WIDTH - _RIGHT))
    y = _Scale(low, high, float(_HEIGHT - _BOTTOM), float(_TOP), log)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_grid(x, y),
        *(part for line in drawn for part in _line(line, x, y, max_points)),
        *_bands(drawn, x),
        "</svg>",
    ]
    return "".join(parts)


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


def _grid(x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for value in log_ticks(y.low, y.high) if y.log else ticks(y.low, y.high, 6):
        at = round(y(value), 1)
        parts.append(f'<path class="rule" d="M{_LEFT} {at}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:g}" text-anchor="end">{number(value)}</text>'
        )
    for value in ticks(x.low, x.high, 5):
        at = round(x(value), 1)
        anchor = "end" if at > _WIDTH - _RIGHT - 14 else "middle"
        parts.append(
            f'<text x="{at}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{number(value)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    return parts


def _line(line: Line, x: _Scale, y: _Scale, max_points: int) -> list[str]:
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


def _path(curve: Sequence[Point], x: _Scale, y: _Scale) -> str:
    if len(curve) == 1:
        # One point is a short stroke: a path of one point draws nothing.
        return f"M{x(curve[0].step) - 3:.1f} {y(curve[0].value):.1f}h6"
    return "M" + "L".join(f"{x(p.step):.1f} {y(p.value):.1f}" for p in curve)


def _bands(lines: Sequence[Line], x: _Scale) -> list[str]:
    """Invisible upright bands that name the values below the pointer."""
    width = (x.end - x.start) / _NUM_BANDS
    parts = []
    for index in range(_NUM_BANDS):
        at = x.low + (index + 0.5) / _NUM_BANDS * (x.high - x.low)
        near = [(line, _nearest(line.curve, at)) for line in lines]
        told = "\n".join(f"{line.name} {number(point.value, 4)}" for line, point in near)
        step = number(near[0][1].step, 9)
        left = x.start + index * width
        parts.append(
            f'<g class="band"><rect x="{left:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{_HEIGHT - _BOTTOM - _TOP}"/><title>step {step}\n{escape(told)}</title></g>'
        )
    return parts


def _nearest(curve: Sequence[Point], step: float) -> Point:
    at = bisect.bisect_left(curve, (step,))
    return min(curve[max(at - 1, 0) : at + 1], key=lambda point: abs(point.step - step))


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values between two ends: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= raw * 0.999)
    first, final = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, final + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them while they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [unit * 10.0**power for power in powers for unit in (1, 2, 5)]
    inside = [value for value in every if low <= value <= high]
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    return inside if len(inside) <= 7 or len(tens) < 2 else tens
