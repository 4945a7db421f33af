"""What a run drew from which source, as the mixture's artifact tells it."""

from dataclasses import dataclass
from typing import Any

from transfusion.artifacts.artifact import Artifact

COLUMNS = ("weight", "prose_tokens", "caption_tokens", "patch_tokens", "padding_tokens")
"""Of the table of sources, in this order; others follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A part of all tokens, from 0 to 1."""

    name: str
    tokens: int
    part: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Statistics of a mixture."""

    shares: list[Share]
    """Kinds of token over all sources, padding among them."""
    columns: list[str]
    sources: list[tuple[str, list[Any]]]
    """Name, and a value a column."""
    facts: dict[str, Any]
    """Whatever else is one value."""


def read_mixture(artifact: Artifact) -> Mixture:
    """The statistics in the metadata of a mixture: `sources` by name, and single values."""
    metadata = artifact.metadata
    sources: dict[str, dict[str, Any]] = metadata.get("sources", {})
    given = {name for values in sources.values() for name in values}
    columns = sorted(given, key=lambda name: (COLUMNS.index(name) if name in COLUMNS else 99, name))
    kinds = [name for name in columns if name.endswith("_tokens")]
    totals = {kind: sum(values.get(kind) or 0 for values in sources.values()) for kind in kinds}
    whole = sum(totals.values())
    return Mixture(
        shares=[
            Share(name=kind.removesuffix("_tokens"), tokens=count, part=count / whole)
            for kind, count in totals.items()
            if whole
        ],
        columns=columns,
        sources=[
            (name, [values.get(column) for column in columns]) for name, values in sources.items()
        ],
        facts={
            name: value
            for name, value in {**metadata, **artifact.manifest.content.metrics}.items()
            if isinstance(value, int | float | str)
        },
    )
