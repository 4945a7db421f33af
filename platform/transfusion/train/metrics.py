"""Metrics of a run: rows of plain JSON, always; a tracking service beside them, when asked.

    {"step": 120, "kind": "train", "values": {"loss": ...}, "timing": {"step_s": ...}}

`values` are what resuming reproduces to the bit; `timing` is outside every digest. `step` counts finished
updates. A resumed run starts from the rows of its checkpoint, so a step is never there twice.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from transfusion.artifacts.canonical import fingerprint

log = logging.getLogger(__name__)

MARKS = {"skipped": "skipped_steps", "spike": "spikes", "rewound_steps": "rewound_steps"}
"""What a row says only of some steps, and what its sum over the run is called."""

RowKind = Literal["train", "validation"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A service that shows a run while it goes."""

    track: Callable[[Row], None]
    close: Callable[[], None]
    """Sends what it still holds: the worker's process may end right after."""


class Metrics:
    """Rows since the last checkpoint; those before are stored with it, not held: a run may have many."""

    def __init__(self, *, tracker: Tracker | None = None) -> None:
        self.unsaved: list[Row] = []
        self._saving: list[Row] = []
        self._tracker = tracker

    def add(
        self,
        kind: RowKind,
        *,
        step: int,
        values: Mapping[str, float],
        timing: Mapping[str, float] | None = None,
    ) -> Row:
        """Appends a row and hands it to the tracker, whose failure is said once and does no harm."""
        row: Row = {
            "step": step,
            "kind": kind,
            "values": dict(values),
            "timing": {name: round(value, 6) for name, value in (timing or {}).items()},
        }
        self.unsaved.append(row)
        if self._tracker is not None:
            self._ask(partial(self._tracker.track, row))
        return row

    def close(self) -> None:
        """Ends the tracker, whose failure does no harm either."""
        if self._tracker is not None:
            self._ask(self._tracker.close)

    def _ask(self, tracker: Callable[[], None]) -> None:
        try:
            tracker()
        except Exception as error:
            log.warning("tracking stopped: %s: %s", type(error).__name__, error)
            self._tracker = None

    def take_unsaved(self) -> bytes:
        """Lines since the last call, for the checkpoint that is being written; kept until that is known to be."""
        self._saving, self.unsaved = self.unsaved, []
        return as_lines(self._saving)

    def saved(self) -> None:
        """The checkpoint that took rows last is written."""
        self._saving = []

    def not_known_saved(self) -> list[Row]:
        """Rows that may be in no checkpoint."""
        return [*self._saving, *self.unsaved]


def as_lines(rows: list[Row]) -> bytes:
    """Rows as JSONL."""
    return b"".join(
        json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n" for row in rows
    )


def parse_rows(lines: bytes) -> list[Row]:
    """Rows of a JSONL."""
    return [json.loads(line) for line in lines.splitlines()]


def last_values(rows: Iterable[Row]) -> dict[str, float]:
    """The newest value of all that was measured, as `validation.psnr_db`; not the rate, nor marks of steps."""
    last: dict[str, float] = {}
    for row in rows:
        last |= {f"{row['kind']}.{name}": value for name, value in row["values"].items()}
    for name in ("lr", *MARKS):
        last.pop(f"train.{name}", None)
    return last


def values_digest(rows: list[Row]) -> str:
    """Digest of what a repeated run must reproduce: steps, kinds and values; no durations."""
    return fingerprint([[row["step"], row["kind"], row["values"]] for row in rows])


def split_finite(values: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """The values that are numbers, and `name nan, name inf` of those that are none."""
    numbers = {name: value for name, value in values.items() if math.isfinite(value)}
    return numbers, ", ".join(f"{name} {values[name]}" for name in values if name not in numbers)
