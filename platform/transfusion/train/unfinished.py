"""What a run has come to so far, for those who look before it ends: files of the store alone, no torch.

Rows go as far as the newest checkpoint; where an attempt ended by a fault, as far as that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import ValidationError

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store
from transfusion.train.metrics import Row, as_lines, parse_rows
from transfusion.train.record import CheckpointRecord

UNSAVED = "unsaved"
"""Folder, below the artifact's, of rows behind the last checkpoint of an attempt that ended: a file an attempt."""


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """A run that was begun and has no manifest."""

    checkpoint_step: int
    """Where it would go on; 0 for the start."""

    rows: list[Row]

    @property
    def last_step(self) -> int:
        """Of the rows: beyond the checkpoint where a fault came after it."""
        return max((int(row["step"]) for row in self.rows), default=self.checkpoint_step)

    def last_values(self) -> dict[str, float]:
        """The newest value of everything that was measured, as `train.loss`."""
        return {
            f"{row['kind']}.{name}": value
            for row in self.rows
            for name, value in row["values"].items()
        }


def keep_unsaved(store: Store, folder: str, *, attempt: str, rows: list[Row]) -> None:
    """Stores the rows that an attempt leaves behind its last checkpoint: what led to its end is in them."""
    if rows:
        store.write(f"{folder}/{UNSAVED}/{attempt}.jsonl", as_lines(rows))


def read_unfinished(store: Store, folder: str) -> UnfinishedRun | None:
    """What the folder of a run without a manifest holds; None where it has left nothing.

    The run may be going on: a checkpoint that is deleted meanwhile is passed over for the one before.
    """
    step, rows = next(_checkpoints(store, folder), (0, []))
    behind = [
        [row for row in parse_rows(store.read(entry.path)) if row["step"] > step]
        for entry in store.list(f"{folder}/{UNSAVED}")
    ]
    # Of several attempts from one checkpoint the one that came farthest: their rows are the same.
    farthest = max(behind, key=len, default=[])
    rows = [*rows, *farthest]
    return UnfinishedRun(checkpoint_step=step, rows=rows) if rows or step else None


def _checkpoints(store: Store, folder: str) -> Iterator[tuple[int, list[Row]]]:
    """Step and rows of the checkpoints that can be read, the newest first."""
    paths = [entry.path for entry in store.list(f"{folder}/checkpoints")]
    for path in reversed(paths):
        if not PurePosixPath(path).match("checkpoints/step-*.json"):
            continue
        try:
            record = CheckpointRecord.model_validate_json(store.read(path))
            yield (
                record.step,
                [row for file in record.metrics for row in parse_rows(store.read(file.path))],
            )
        except (ArtifactError, ValidationError):
            continue
