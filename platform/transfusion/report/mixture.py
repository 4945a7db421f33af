"""What a run drew from which source, as the mixture's metadata tell it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfusion.artifacts.artifact import Artifact
from transfusion.report.formats import number, percent

KINDS = ("prose_tokens", "caption_tokens", "patch_tokens", "copy_tokens")
"""What a position can hold, besides the special ids around it; the last in plans with clean copies."""

COLUMNS = ("documents", "held_out", "epochs", "images", "positions", *KINDS)
"""Of the table of sources, in this order; others follow."""

CAPACITY = ("steps", "lanes", "sequences_per_micro_batch", "sequence_length")
"""Their product is every position of the plan, padding included."""

Statistics = Mapping[str, Mapping[str, Any]]
"""Numbers by name, by source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A part of all positions, from 0 to 1."""

    name: str
    tokens: float
    part: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One source: what it was to have, what it had, and a number a column."""

    name: str
    wanted: float | None
    """Part of all positions that its weight asks for."""
    part: float | None
    """Part of all positions that it had."""
    values: list[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureTable:
    """Statistics of a mixture."""

    shares: list[Share]
    """What the positions of all sequences hold, padding among it."""
    columns: list[str]
    sources: list[SourceRow]
    facts: dict[str, str]
    """Its constants, and how well the packing went."""


def read_statistics(artifact: Artifact) -> MixtureTable:
    """The statistics of a mixture; what it does not tell is left out."""
    metadata = artifact.metadata
    statistics: Statistics = metadata.get("statistics", {})
    given = {name for values in statistics.values() for name in values}
    columns = sorted(given, key=lambda name: (COLUMNS.index(name) if name in COLUMNS else 99, name))
    positions = _total(statistics, "positions")
    weights = {
        name: source["weight"]
        for name, source in metadata.get("sources", {}).items()
        if "weight" in source
    }
    return MixtureTable(
        shares=_shares(metadata, statistics),
        columns=columns,
        sources=[
            SourceRow(
                name=name,
                wanted=weights[name] / sum(weights.values()) if name in weights else None,
                part=values["positions"] / positions if positions else None,
                values=[values.get(column) for column in columns],
            )
            for name, values in statistics.items()
        ],
        facts=_facts(artifact),
    )


def _facts(artifact: Artifact) -> dict[str, str]:
    constants = {
        name: number(value, 9) if isinstance(value, int | float) else value
        for name, value in artifact.metadata.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    measured = {
        # Shares of the sources are in the table.
        name: percent(value, 2)
        for name, value in artifact.manifest.content.metrics.items()
        if not name.startswith("share.")
    }
    return {name.replace("_", " "): told for name, told in {**measured, **constants}.items()}


def _shares(metadata: Mapping[str, Any], statistics: Statistics) -> list[Share]:
    given = {kind for values in statistics.values() for kind in values}
    counts = {
        kind.removesuffix("_tokens"): _total(statistics, kind) for kind in KINDS if kind in given
    }
    positions = _total(statistics, "positions")
    if positions:
        counts["special ids"] = max(positions - sum(counts.values()), 0.0)
        if all(name in metadata for name in CAPACITY):
            capacity = math.prod(metadata[name] for name in CAPACITY)
            counts["padding"] = max(capacity - positions, 0.0)
    whole = sum(counts.values())
    return [
        Share(name=name, tokens=count, part=count / whole)
        for name, count in counts.items()
        if whole
    ]


def _total(statistics: Statistics, name: str) -> float:
    return float(sum(values.get(name, 0.0) for values in statistics.values()))
