"""`transfusion data inspect`: what lies at a path, how it would be read, and what would come of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Words

from data_pipelines.inspect.findings import Findings, find
from data_pipelines.inspect.guess import Guess, guess
from data_pipelines.inspect.look import Look, counted, listed, look_at
from data_pipelines.inspect.sample import check, sample
from data_pipelines.inspect.sheet import contact_sheet
from data_pipelines.sources.source import SOURCES
from transfusion.errors import SpecError

_BUDGET_S = 15.0
"""After so long a sample is large enough, however few rows it has."""


def inspect(
    path: str,
    *,
    source: str | None,
    changes: Sequence[str],
    num_rows: int,
    num_examples: int,
    out: Path,
) -> None:
    """Prints the findings, and writes a contact sheet where there are images.

    Raises:
        ArtifactError: Nothing is there, or nothing that is known.
        SpecError: `--as` or `--set` is at fault.
    """
    console = Console(highlight=False, soft_wrap=False)
    look = look_at(path)
    guessed = guess(look, source=source)
    config = {**guessed.config, **_changed(changes)}
    check(guessed.source, {"path": path, **config})
    _show_look(console, look)
    _show_guess(console, look, guessed, config)
    found = find(
        sample(look, guessed.source, config, num_rows=num_rows),
        num_examples=num_examples,
        budget_s=_BUDGET_S,
    )
    _show_findings(console, found)
    if found.tiles:
        out.mkdir(parents=True, exist_ok=True)
        heading = f"{path}  -  {guessed.source}"
        contact_sheet(found.tiles, heading=heading).save(out / "contact_sheet.png")
        console.print(f"\nContact sheet: {out / 'contact_sheet.png'}", soft_wrap=True)


def _changed(changes: Sequence[str]) -> dict[str, Any]:
    """`key=value` with YAML values, as in a job's overrides."""
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise SpecError(f"--set {change}: must read key=value, such as caption_column=title")
        try:
            found[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise SpecError(f"--set {change}: {' '.join(str(error).split())}") from error
    return found


def _show_look(console: Console, look: Look) -> None:
    endings = listed(
        (f"{count:,} {ending or 'without ending'}" for ending, count in look.endings.items()), 6
    )
    _head(console, "Files", f"{len(look.keys):,} at {look.place.url}: {endings}")
    if not look.columns:
        return
    inside = "the .json members of " if look.members else ""
    _head(console, "Columns", f"of {inside}{look.columns_of}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", overflow="fold", max_width=28)
    table.add_column("type", overflow="fold", max_width=36)
    table.add_column("first value", no_wrap=True, overflow="ellipsis")
    for column in look.columns:
        table.add_row(*map(_plain, (column.name, column.type, column.example)))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _show_guess(console: Console, look: Look, guessed: Guess, config: dict[str, Any]) -> None:
    _head(console, "Read as", guessed.source)
    for reason in guessed.why:
        console.print(Padding(_plain(reason), (0, 0, 0, 2), expand=False))
    stage = {"uses": SOURCES[guessed.source], "config": {"path": look.path, **config}}
    text = yaml.safe_dump({guessed.source: stage}, sort_keys=False, allow_unicode=True, width=1000)
    console.print("\n  A stage of a job would say:")
    console.print(
        Padding(Words(text.rstrip(), style="cyan"), (0, 0, 0, 4), expand=False), soft_wrap=True
    )
    console.print(
        Words(
            "  Wrong? Name another with --as SOURCE, or change a value with --set key=value.", "dim"
        )
    )


def _show_findings(console: Console, found: Findings) -> None:
    early = "; there was no time for more" if found.stopped_early else ""
    _head(
        console,
        "Sample",
        f"{counted(found.num_rows, 'row')} of {counted(found.num_files, 'file')} in {found.seconds:.1f} s{early}",
    )
    table = Table.grid(padding=(0, 2))
    table.add_row("documents", f"{found.num_documents:,}")
    made_of = listed((f"{count:,} {shape}" for shape, count in found.shapes.most_common()), 4)
    table.add_row("made up of", made_of)
    table.add_row(
        "characters of a text", f"{found.middle(found.characters)}  (least / median / most)"
    )
    if found.num_images:
        decoded = found.num_images - found.undecodable.total()
        table.add_row("images decoded", f"{decoded:,} of {found.num_images:,}")
        table.add_row("shorter side, pixels", found.middle(found.sides_px))
    if found.missing_images:
        table.add_row("images without a file", f"{found.missing_images:,}, left out")
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    _show_rejects(console, found)
    for example in found.examples:
        _head(console, "Example", example.key)
        for line in example.lines:
            console.print(Padding(_plain(line), (0, 0, 0, 2), expand=False))


def _show_rejects(console: Console, found: Findings) -> None:
    if not found.rejects and not found.undecodable:
        console.print(Words("  nothing rejected", "green"))
        return
    _head(
        console,
        "Rejected",
        f"{counted(found.rejects.total(), 'row')}, and {counted(found.undecodable.total(), 'image')} of documents "
        "that cannot be decoded",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("reason")
    table.add_column("count", justify="right")
    table.add_column("the first", overflow="fold")
    for reason, count in (found.rejects + found.undecodable).most_common():
        table.add_row(reason, f"{count:,}", _plain(found.first_of_reason[reason]))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _head(console: Console, title: str, rest: str) -> None:
    line = Words()
    line.append(f"\n{title}  ", style="bold")
    line.append(_plain(rest).plain)
    console.print(line)


def _plain(text: str) -> Words:
    """Text of the data: no markup, and no character that would steer the terminal."""
    encoded = text.encode("utf-8", "backslashreplace").decode()
    return Words("".join(c if c.isprintable() else " " for c in encoded))
