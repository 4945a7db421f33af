"""Parts of a whole over steps, one on top of the other, as inline SVG: where the time of a step goes."""

from collections.abc import Sequence
from itertools import pairwise

from transfusion.report.axes import NUM_BANDS, Scale, across, bands, frame, grid, upwards
from transfusion.report.charts import Line
from transfusion.report.curves import Curve, mean
from transfusion.report.formats import number


def area_chart(lines: Sequence[Line], *, label: str) -> str:
    """An SVG of areas whose heights add up. Each is the mean over a stretch of steps, so that what is done once in
    a hundred of them, such as a checkpoint, shows with its true share; the first line lies at the bottom.
    """  # noqa: D205 one thought
    steps = sorted({point.step for line in lines for point in line.curve})
    if not steps:
        return ""
    edges = stretches(steps[0], steps[-1])
    layers = [means(line.curve, edges) for line in lines]
    tops = [sum(values) for values in zip(*layers, strict=True)]
    # A first step that compiled for a minute would leave all others on the floor.
    high = sorted(tops)[-1 - len(tops) // 30] * 1.06 or 1.0
    x, y = across(edges[0], edges[-1]), upwards(0.0, high)
    parts, floor = [], [0.0] * len(tops)
    for line, layer in zip(lines, layers, strict=True):
        ceiling = [below + value for below, value in zip(floor, layer, strict=True)]
        parts.append(
            f'<path class="area {line.role}" d="{_outline(floor, ceiling, edges, x, y)}"/>'
        )
        floor = ceiling

    def told(step: float) -> tuple[float, str]:
        index = max(i for i, edge in enumerate(edges[:-1]) if edge <= step or i == 0)
        values = zip(lines, layers, strict=True)
        text = "\n".join(f"{line.name} {number(layer[index])}" for line, layer in values)
        return float(round(edges[index])), f"{text}\ntogether {number(tops[index])}"

    return frame([*parts, *grid(x, y), *bands(x, told)], label=label)


def stretches(first: float, last: float) -> list[float]:
    """Edges of at most `NUM_BANDS` stretches, each of at least a step; the last ends after the last step."""
    count = int(min(NUM_BANDS, last - first + 1))
    return [first + (last + 1 - first) * index / count for index in range(count + 1)]


def means(curve: Curve, edges: Sequence[float]) -> list[float]:
    """Of the points of each stretch; where there are none, nothing was spent."""
    found, at = [], 0
    for _, end in pairwise(edges):
        begin = at
        while at < len(curve) and curve[at].step < end:
            at += 1
        found.append(mean(point.value for point in curve[begin:at]) if at > begin else 0.0)
    return found


def _outline(
    floor: Sequence[float], ceiling: Sequence[float], edges: Sequence[float], x: Scale, y: Scale
) -> str:
    """A path along the tops of the stretches and back along their floors, as steps."""
    there = [
        f"{x(edge):.1f} {y(top):.1f}"
        for top, ends in zip(ceiling, pairwise(edges), strict=True)
        for edge in ends
    ]
    back = [
        f"{x(edge):.1f} {y(bottom):.1f}"
        for bottom, ends in zip(floor, pairwise(edges), strict=True)
        for edge in ends
    ]
    return "M" + "L".join([*there, *reversed(back)]) + "Z"
