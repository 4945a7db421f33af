"""What a mixture came to, for people and for scripts: shares, epochs, padding, how its sequences are filled.

Everything is read from the plan and its statistics; no token and no latent.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transfusion.artifacts.artifact import Artifact

if TYPE_CHECKING:
    from rich.table import Table

MAX_GROUPS = 128
"""Row groups of the plan's files that are looked at, evenly spread: of a long run a part, 65,000 sequences."""

MAX_BINS = 10

BAR_WIDTH = 32

WIDTH = 110
"""Columns of what is printed: the widest table with names of 20 letters."""

KINDS = ("prose_tokens", "caption_tokens", "patch_tokens")


def mixture_summary(artifact: Artifact) -> dict[str, Any]:
    """Plain values: constants, what the positions hold, every source, every phase, histograms."""
    from transfusion.report.mixture import read_statistics

    metadata = artifact.metadata
    table = read_statistics(artifact)
    steps, lanes = int(metadata["steps"]), int(metadata["lanes"])
    return {
        "steps": steps,
        "sequences": steps * lanes * int(metadata["sequences_per_micro_batch"]),
        "sequence_length": int(metadata["sequence_length"]),
        "holds": {
            share.name: {"tokens": share.tokens, "part": share.part} for share in table.shares
        },
        "sources": {
            row.name: {
                "wanted": row.wanted,
                "part": row.part,
                **dict(zip(table.columns, row.values, strict=True)),
            }
            for row in table.sources
        },
        "phases": list(_phases(metadata.get("phases", []), steps)),
        "packing": {
            name: value
            for name, value in artifact.manifest.content.metrics.items()
            if not name.startswith("share.")
        },
        "takedown": metadata.get("takedown"),
        "histograms": _histograms(artifact),
    }


def _phases(phases: Sequence[Mapping[str, Any]], steps: int) -> Iterator[dict[str, Any]]:
    """Phases with their last step, shares side by side."""
    ends = [int(phase["start_step"]) for phase in phases[1:]] + [steps]
    for phase, end in zip(phases, ends, strict=True):
        statistics = phase.get("statistics", {})
        weights = phase.get("weights", {})
        whole = sum(values.get("positions", 0.0) for values in statistics.values())
        sources = {}
        for name in {**weights, **statistics}:
            values = dict(statistics.get(name, {}))
            part = values.pop("share", None)
            if part is None and whole:
                part = values.get("positions", 0.0) / whole
            sources[name] = {"wanted": weights.get(name), "part": part, **values}
        yield {"start_step": int(phase["start_step"]), "end_step": end, "sources": sources}


def _histograms(artifact: Artifact) -> dict[str, Any]:
    """How far sequences are filled, how many pieces of documents they hold, how long these are."""
    import numpy as np
    import pyarrow.compute as pc

    from transfusion.artifacts.mixture import References
    from transfusion.artifacts.tables import ROWS_PER_GROUP, read_row_group

    files = [file for file in artifact.manifest.content.files if file.name.startswith("train/")]
    groups = [
        (file, group)
        for file in sorted(files, key=lambda file: file.name)
        for group in range(math.ceil((file.rows or 0) / ROWS_PER_GROUP))
    ]
    filled, counts, lengths = [], [], []
    for file, group in groups[:: max(1, math.ceil(len(groups) / MAX_GROUPS))]:
        column = read_row_group(artifact.store, file, group, ["references"])["references"]
        words = np.frombuffer(b"".join(column.to_pylist()), "<u8").reshape(-1, 2)
        length = References.from_words(words).length
        count = pc.binary_length(column).to_numpy() // 16
        ends = np.cumsum(np.concatenate([[0], length]))[np.cumsum(count)]
        filled += np.diff(ends, prepend=0).tolist()
        counts += count.tolist()
        lengths += length.tolist()
    return {
        "sequences": len(counts),
        "of_sequences": sum(file.rows or 0 for file in files),
        "positions_filled": histogram(filled),
        "documents_per_sequence": histogram(counts),
        "positions_per_document": histogram(lengths),
    }


def histogram(values: Sequence[int]) -> dict[str, Any]:
    """Counts of whole numbers in at most `MAX_BINS` bins of equal width: `first[i]` up to before `first[i+1]`."""
    if not values:
        return {"first": [], "counts": [], "mean": None, "least": None, "most": None}
    least, most = min(values), max(values)
    width = max(1, math.ceil((most - least + 1) / MAX_BINS))
    counts = [0] * ((most - least) // width + 1)
    for value in values:
        counts[(value - least) // width] += 1
    return {
        "first": [least + width * index for index in range(len(counts))],
        "counts": counts,
        "mean": sum(values) / len(values),
        "least": least,
        "most": most,
    }


def mixture_text(summary: Mapping[str, Any], outcomes: Mapping[str, Any] | None) -> str:
    """The summary for a terminal.

    Args:
        outcomes: What became of the documents, as a manifest has it.
    """
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH, no_color=True, highlight=False)
    console.print(
        f"\n{summary['sequences']:,} sequences of {summary['sequence_length']:,} positions, "
        f"{summary['steps']:,} steps"
    )

    def section(title: str, table: "Table") -> None:
        console.print(f"\n{title}")
        console.print(table)

    section("Sources", _sources(summary["sources"]))
    for phase in summary["phases"] if len(summary["phases"]) > 1 else ():
        steps = f"Steps {phase['start_step']:,} up to {phase['end_step']:,}"
        section(steps, _sources(phase["sources"]))
    section("Positions hold", _bars(_told_shares(summary["holds"])))
    if outcomes:
        section("Documents", _bars(_told_outcomes(outcomes)))
    if summary["takedown"]:
        console.print(f"\n{_told_takedown(summary['takedown'])}", markup=False, soft_wrap=True)
    histograms = summary["histograms"]
    seen = histograms["sequences"], histograms["of_sequences"]
    part = "" if seen[0] == seen[1] else f" (of {seen[0]:,} of the plan's {seen[1]:,} sequences)"
    for name, title in (
        ("positions_filled", "Sequences by the positions that are filled"),
        ("documents_per_sequence", "Sequences by the documents in them, pieces counted"),
        ("positions_per_document", "Documents and pieces by their positions"),
    ):
        section(f"{title}{part}", _bars(_told_histogram(histograms[name])))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


Line = tuple[str, float, str]
"""Name, number, and how the number is told."""


def _table(*, header: bool) -> "Table":
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=header)


def _sources(sources: Mapping[str, Mapping[str, Any]]) -> "Table":
    table = _table(header=True)
    given = {column for values in sources.values() for column in values}
    columns = [column for column in _COLUMNS if column in given]
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(_COLUMNS[column], justify="right")
    for name, values in sources.items():
        table.add_row(name, *(_told(column, values.get(column)) for column in columns))
    return table


_COLUMNS = {
    "wanted": "wanted",
    "part": "had",
    "epochs": "epochs",
    "documents": "documents",
    "held_out": "held out",
    "images": "images",
    "prose_tokens": "prose",
    "caption_tokens": "captions",
    "patch_tokens": "patches",
    "copy_tokens": "copies",
    "positions": "positions",
}
"""Heading of each column, in this order."""


def _told(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column in ("wanted", "part"):
        return f"{value:.2%}"
    return f"{value:.2f}" if column == "epochs" else f"{value:,.0f}"


def _bars(lines: Sequence[Line]) -> "Table":
    from rich.bar import Bar

    table = _table(header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    most = max((value for _, value, _ in lines), default=0.0) or 1.0
    for name, value, told in lines:
        table.add_row(name, told, Bar(most, 0, value, width=BAR_WIDTH))
    return table


def _told_shares(holds: Mapping[str, Mapping[str, float]]) -> list[Line]:
    return [
        (name, share["part"], f"{share['tokens']:,.0f}  {share['part']:7.2%}")
        for name, share in holds.items()
    ]


def _told_outcomes(outcomes: Mapping[str, Any]) -> list[Line]:
    counts = {"trained on": outcomes["written"]}
    counts |= {reason.replace("_", " "): n for reason, n in outcomes["filtered"].items()}
    counts |= {f"{reason} (rejected)": n for reason, n in outcomes["rejected"].items()}
    whole = max(outcomes["input"], 1)
    return [
        (name, float(count), f"{count:,}  {count / whole:7.2%}") for name, count in counts.items()
    ]


def _told_takedown(takedown: Mapping[str, Any]) -> str:
    told = f"Takedown: {takedown['listed']:,} keys listed"
    if not takedown["not_found"]:
        return f"{told}, each names a document"
    first = ", ".join(takedown["first_not_found"])
    return f"{told}, {takedown['not_found']:,} name no document, such as {first}"


def _told_histogram(found: Mapping[str, Any]) -> list[Line]:
    first = found["first"]
    last = [start - 1 for start in first[1:]] + [found["most"]]
    return [
        (f"{start:,}" if start == end else f"{start:,} - {end:,}", float(count), f"{count:,}")
        for start, end, count in zip(first, last, found["counts"], strict=True)
    ]
