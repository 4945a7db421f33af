"""What a sweep found: each arm over its seeds, beside the first arm, and whether a difference is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

Verdict = Literal["better", "worse", "not shown"]

Scores = Mapping[str, Mapping[int, float]]
"""By arm, by seed."""

RANGES = 2.0
"""A difference is shown when all seeds agree on its sign, and the gap of the means is more than so many times the
larger range over seeds."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm by one measure."""

    values: tuple[float, ...]
    """One a seed."""
    difference: float | None = None
    """Of the means, over the seeds that both arms have; None for the first arm."""
    verdict: Verdict | None = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean(self.values)


def compare_arms(scores: Scores, reference: str, *, higher_is_better: bool) -> dict[str, Cell]:
    """A cell for each arm that has a value. Arms are paired by seed.

    One seed shows nothing: there is no range to hold a gap against.
    """
    cells = {}
    base = scores.get(reference, {})
    for arm, by_seed in scores.items():
        if not by_seed:
            continue
        values = tuple(by_seed[seed] for seed in sorted(by_seed))
        seeds = sorted(set(by_seed) & set(base))
        if arm == reference or not seeds:
            cells[arm] = Cell(values=values)
            continue
        gaps = [by_seed[seed] - base[seed] for seed in seeds]
        spread = max(
            _range([by_seed[seed] for seed in seeds]), _range([base[seed] for seed in seeds])
        )
        difference = mean(gaps)
        agree = all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)
        shown = len(seeds) > 1 and agree and abs(difference) > RANGES * spread
        good = (difference > 0) == higher_is_better
        verdict: Verdict = ("better" if good else "worse") if shown else "not shown"
        cells[arm] = Cell(values=values, difference=difference, verdict=verdict)
    return cells


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def table(cells: Mapping[str, Mapping[str, Cell]], arms: Sequence[str]) -> list[list[str]]:
    """Rows of text, the head first: an arm a row, a measure a column.

    Args:
        cells: By measure, by arm.
    """
    rows = [["arm", *cells]]
    for arm in arms:
        rows.append([arm, *(_told(of.get(arm)) for of in cells.values())])
    return rows


def _told(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    low, high = min(cell.values), max(cell.values)
    told = f"{cell.mean:.4g}"
    if len(cell.values) > 1:
        told += f" [{low:.4g}, {high:.4g}]"
    if cell.verdict is not None:
        told += f" {cell.verdict}"
    return told


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a README."""
    head, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])
