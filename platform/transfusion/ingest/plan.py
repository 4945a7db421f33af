"""Sequences of a plan, by step and lane: which pieces of which documents they hold."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.mixture import VALIDATION, Mixture, References, block_name
from transfusion.artifacts.tables import ROWS_PER_GROUP, read_row_group
from transfusion.ingest.cache import Cache

Words = UInt64[np.ndarray, "_ 2"]


class Piece(NamedTuple):
    """One reference of a plan."""

    shard: int
    row: int
    start: int
    length: int
    image_first: bool
    epoch: int


class PlanReader:
    """Reads sequences of a lane, some steps at once, when the first of these is asked for."""

    def __init__(self, artifact: Artifact, mixture: Mixture, cache: Cache) -> None:
        self._artifact, self._mixture, self._cache = artifact, mixture, cache

    def sequences(self, step: int, lane: int) -> list[list[Piece]]:
        """The sequences of a micro-batch.

        Raises:
            IndexError: The plan has no such step or lane.
        """
        plan = self._mixture
        if not (0 <= step < plan.steps and 0 <= lane < plan.lanes):
            raise IndexError(
                f"step {step}, lane {lane}: the plan has {plan.steps} steps of {plan.lanes} lanes"
            )
        block, within = divmod(step, plan.steps_per_block)
        among = lane % plan.lanes_per_file
        first_lane = lane - among
        steps = min(plan.steps_per_block, plan.steps - block * plan.steps_per_block)
        entry = self._artifact.entry(block_name(first_lane, block))
        return self._read(entry, micro_batch=among * steps + within)

    def validation(self, index: int) -> list[list[Piece]]:
        """The sequences of a held-out micro-batch."""
        number = self._mixture.validation_micro_batches
        if not 0 <= index < number:
            raise IndexError(f"validation {index}: the plan has {number}")
        return self._read(self._artifact.entry(VALIDATION), micro_batch=index)

    def _read(self, entry: FileEntry, *, micro_batch: int) -> list[list[Piece]]:
        """The sequences of one of those in a file."""
        size = self._mixture.sequences_per_micro_batch
        words = []
        for row in range(micro_batch * size, (micro_batch + 1) * size):
            group, at = divmod(row, ROWS_PER_GROUP)
            load = partial(self._load, entry, group)
            rows: pa.Array = self._cache.get(("plan", entry.name, group), load)
            words.append(np.frombuffer(rows[at].as_buffer(), "<u8").reshape(-1, 2))
        return pieces(words)

    def _load(self, entry: FileEntry, group: int) -> tuple[pa.Array, int]:
        table = read_row_group(self._artifact.store, entry, group, ["references"])
        return table["references"].combine_chunks(), int(table.nbytes)


def pieces(sequences: Iterable[Words]) -> list[list[Piece]]:
    """The references of sequences, read from their words."""
    words = list(sequences)
    found = References.from_words(np.concatenate([np.zeros((0, 2), np.uint64), *words]))
    columns = (found.shard, found.row, found.start, found.length, found.image_first, found.epoch)
    rows = map(Piece._make, zip(*(column.tolist() for column in columns), strict=True))
    return [[next(rows) for _ in range(len(part))] for part in words]
