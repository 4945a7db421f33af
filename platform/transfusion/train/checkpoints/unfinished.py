"""What a run has come to so far, for those who look before it ends: files of the store alone, no torch.

Rows go as far as the newest checkpoint; where a fault ended an attempt, as far as that.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import ValidationError

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store
from transfusion.train.checkpoints.record import CheckpointRecord
from transfusion.train.metrics import Row, as_lines, last_values, parse_rows

UNSAVED = "unsaved"
"""Folder, below the artifact's, of rows behind the last checkpoint of an attempt that ended: a file an attempt."""

NEWEST_FILES = 32
"""One a checkpoint, in which the last value of all that is measured is looked for: a long run has thousands."""

PARALLEL_READS = 16


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """A run that was begun and has no manifest."""

    store: Store
    checkpoint_step: int
    """Where it would go on; 0 for the start."""
    files: list[str]
    """Of rows up to the checkpoint, the oldest first; not read yet."""
    behind: list[Row]
    """Rows behind the checkpoint, where a fault came after it."""

    @property
    def last_step(self) -> int:
        """The last that was measured and is stored."""
        return int(self.behind[-1]["step"]) if self.behind else self.checkpoint_step

    def rows(self, *, newest_files: int | None = None) -> Iterator[Row]:
        """All rows in their order, or those of the newest files; no more of them is held than is read ahead."""
        chosen = self.files if newest_files is None else self.files[-newest_files:]
        with ThreadPoolExecutor(PARALLEL_READS) as threads:
            for first in range(0, len(chosen), PARALLEL_READS):
                part = chosen[first : first + PARALLEL_READS]
                for lines in threads.map(self.store.read, part):
                    yield from parse_rows(lines)
        yield from self.behind

    def last_values(self) -> dict[str, float]:
        """The newest value of everything that was measured lately, by the names of an ended run's metrics."""
        return last_values(self.rows(newest_files=NEWEST_FILES))


def keep_unsaved(store: Store, folder: str, *, attempt: str, rows: list[Row]) -> None:
    """Stores the rows that an attempt leaves behind its last checkpoint: what led to its end is in them."""
    if rows:
        store.write(f"{folder}/{UNSAVED}/{attempt}.jsonl", as_lines(rows))


def read_unfinished(store: Store, folder: str) -> UnfinishedRun | None:
    """What the folder of a run without a manifest holds; None where it has left nothing.

    The run may be going on: a checkpoint that is deleted meanwhile is passed over for the one before.
    """
    record = next(_records(store, folder), None)
    step = record.step if record else 0
    behind: list[Row] = []
    for entry in store.list(f"{folder}/{UNSAVED}"):
        rows = [row for row in parse_rows(store.read(entry.path)) if row["step"] > step]
        # Rows of an attempt from another checkpoint would leave a gap. Those from this one are alike.
        if rows and rows[0]["step"] == step + 1 and len(rows) > len(behind):
            behind = rows
    if record is None and not behind:
        return None
    files = [file.path for file in record.metrics] if record else []
    return UnfinishedRun(store=store, checkpoint_step=step, files=files, behind=behind)


def newest_checkpoint_step(store: Store, folder: str) -> int:
    """Where a run without a manifest would go on; 0 for the start."""
    record = next(_records(store, folder), None)
    return record.step if record else 0


def _records(store: Store, folder: str) -> Iterator[CheckpointRecord]:
    """Records of checkpoints that can be read, the newest first."""
    found = {}
    for entry in store.list(f"{folder}/checkpoints"):
        name = re.fullmatch(r"step-(\d+)\.json", PurePosixPath(entry.path).name)
        if name:
            found[int(name.group(1))] = entry.path
    for step in sorted(found, reverse=True):
        try:
            yield CheckpointRecord.model_validate_json(store.read(found[step]))
        except (ArtifactError, ValidationError):
            continue
