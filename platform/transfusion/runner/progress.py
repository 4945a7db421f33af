"""Progress for people: a live bar on a terminal, log lines where there is none."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from transfusion.stage import Progress


def make_progress(log: logging.Logger) -> Callable[..., Progress]:
    """What a stage is handed as `context.progress`."""
    kind = _TerminalProgress if sys.stderr.isatty() else Progress

    def start(*, total: int, unit: str) -> Progress:
        return kind(log, total=total, unit=unit)

    return start


class _TerminalProgress(Progress):
    """A bar with count, rate, time left and what the stage wants shown."""

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        name = self._log.name.rpartition(".")[2]
        self._bars = Bars(
            TextColumn(f"          {name:14}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + self.unit),
            TextColumn("{task.fields[rate]}"),
            TextColumn("[dim]{task.fields[shown]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        self._task = self._bars.add_task("", total=self.total, rate="", shown="")
        return self

    def __exit__(self, *details: object) -> None:
        self._bars.stop()
        super().__exit__(*details)

    def advance(self, count: int = 1, **shown: Any) -> None:
        self.done += count
        self._shown = shown
        told = "  ".join(f"{key} {value}" for key, value in shown.items())
        rate = f"{self.rate:,.4g}/s, {self.left} left"
        self._bars.update(self._task, completed=self.done, rate=rate, shown=told)
