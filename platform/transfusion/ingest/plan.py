"""Sequences of a plan, by step and lane: which pieces of which documents they hold."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import VALIDATION, Mixture, References, block_name
from transfusion.artifacts.tables import load_table
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
    """Reads a block of a lane when its first step is asked for."""

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
        return self._read(block_name(lane, block), within)

    def validation(self, index: int) -> list[list[Piece]]:
        """The sequences of a held-out micro-batch."""
        number = self._mixture.validation_micro_batches
        if not 0 <= index < number:
            raise IndexError(f"validation {index}: the plan has {number}")
        return self._read(VALIDATION, index)

    def _read(self, name: str, micro_batch: int) -> list[list[Piece]]:
        block: pa.Array = self._cache.get(("plan", name), partial(self._load, name))
        size = self._mixture.sequences_per_micro_batch
        values = block[micro_batch * size : (micro_batch + 1) * size]
        return pieces(np.frombuffer(value.as_buffer(), "<u8").reshape(-1, 2) for value in values)

    def _load(self, name: str) -> tuple[pa.Array, int]:
        artifact = self._artifact
        table = load_table(artifact.store, artifact.entry(name), ["references"])
        return table["references"].combine_chunks(), int(table.nbytes)


def pieces(sequences: Iterable[Words]) -> list[list[Piece]]:
    """The references of sequences, read from their words."""
    words = list(sequences)
    found = References.from_words(np.concatenate([np.zeros((0, 2), np.uint64), *words]))
    columns = (found.shard, found.row, found.start, found.length, found.image_first, found.epoch)
    rows = map(Piece._make, zip(*(column.tolist() for column in columns), strict=True))
    return [[next(rows) for _ in range(len(part))] for part in words]
