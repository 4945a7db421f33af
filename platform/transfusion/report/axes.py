"""What every chart is drawn on: scales, ticks, the grid, and the bands that tell values when pointed at."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from transfusion.report.formats import number

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24
NUM_BANDS = 60
"""Stretches of a chart that tell their values when pointed at."""


@dataclass(frozen=True)
class Scale:
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


def frame(parts: list[str], *, label: str) -> str:
    """The SVG around what is drawn; `label` tells it to readers that do not see it."""
    inside = "".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )


def across(first: float, last: float) -> Scale:
    """The scale of steps."""
    return Scale(first, last, float(LEFT), float(WIDTH - RIGHT))


def upwards(low: float, high: float, *, log: bool = False) -> Scale:
    """The scale of values."""
    return Scale(low, high, float(HEIGHT - BOTTOM), float(TOP), log)


def grid(x: Scale, y: Scale) -> list[str]:
    """Rules, ticks and the axis of steps."""
    parts = []
    for value in log_ticks(y.low, y.high) if y.log else ticks(y.low, y.high, 6):
        at = round(y(value), 1)
        parts.append(f'<path class="rule" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 4:g}" text-anchor="end">{number(value)}</text>'
        )
    for value in ticks(x.low, x.high, 5):
        at = round(x(value), 1)
        anchor = "end" if at > WIDTH - RIGHT - 14 else "middle"
        parts.append(
            f'<text x="{at}" y="{HEIGHT - 6}" text-anchor="{anchor}">{number(value)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return parts


def bands(x: Scale, told: Callable[[float], tuple[float, str]]) -> list[str]:
    """Invisible upright bands that name the values below the pointer.

    Args:
        told: Near a step: the step that has values, and what they are, a line each.
    """
    width = (x.end - x.start) / NUM_BANDS
    parts = []
    for index in range(NUM_BANDS):
        step, text = told(x.low + (index + 0.5) / NUM_BANDS * (x.high - x.low))
        left = x.start + index * width
        parts.append(
            f'<g class="band"><rect x="{left:.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP}"/><title>step {number(step, 9)}\n{escape(text)}</title></g>'
        )
    return parts


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
