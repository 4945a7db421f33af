"""What is done about a step whose loss or gradient is not a number, and how any step at fault is written down.

If it is not a number, the update is not made. A step that is passed over stays so: the checkpoint records it,
and the position in the data moves on. The step's documents are written beside the metrics.
"""

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from transfusion.errors import ArtifactError, TransfusionError
from transfusion.storage.store import Store
from transfusion.train.agreement import agreed
from transfusion.train.loop_config import LoopConfig
from transfusion.train.metrics import split_finite
from transfusion.train.spikes import Rewind
from transfusion.train.trainee import Trainee

log = logging.getLogger(__name__)

TOLD_LANES, TOLD_DOCUMENTS = 4, 8
"""So many are named in a message; the file has all."""

_OfRank = tuple[list[int], dict[int, Sequence[str]]]

FAULTS = "faults"
"""Folder of the files about steps without an update, below the artifact's."""


class NotFiniteError(TransfusionError):
    """A loss or gradient that is not a number, with the place in the data; every rank raises it at once."""


class SpikeError(TransfusionError):
    """A loss that stands out and that nothing more is done about; every rank raises it at once."""


class Skips:
    """The steps that made no update, and whether another may be added; the same on every rank. Their files too."""

    def __init__(self, trainee: Trainee, config: LoopConfig, *, store: Store, folder: str) -> None:
        self.steps: list[int] = []
        """Ascending; steps count from 0."""
        self._trainee = trainee
        self._config = config
        self._store = store
        self._folder = folder

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Notes that a step makes no update; for every rank.

        Raises:
            NotFiniteError: By the policy, or because it was one too many in a row.
        """
        config = self._config
        _, wrong = split_finite(values)
        data = self.write(step, why=wrong, values=values)
        if config.on_nan == "halt":
            raise NotFiniteError(
                f"step {step}: {wrong}: training stopped before this update was made; its data: {data}; "
                f"{remedy(config)}"
            )
        self.count(step, why=wrong, data=data, error=NotFiniteError)

    def count(self, step: int, *, why: str, data: str, error: type[TransfusionError]) -> None:
        """Notes that a step makes no update, whose documents were written already; for every rank.

        Raises:
            TransfusionError: The given one, where it was one too many in a row.
        """
        limit = self._config.max_skipped_steps
        self.steps.append(step)
        in_a_row = trailing(self.steps)
        if in_a_row > limit:
            raise error(
                f"step {step}: {why}: {in_a_row} steps in a row without an update, more than "
                f"max_skipped_steps ({limit}); its data: {data}; {remedy(self._config)}"
            )
        if dist.get_rank() == 0:
            log.warning("step %d makes no update: %s; its data: %s", step, why, data)

    def write(self, step: int, *, why: str, values: Mapping[str, float]) -> str:
        """Writes down a step at fault with its documents, and names the data in short; for every rank."""

        def put() -> str:
            documents = {lane: ids for _, part in everyone for lane, ids in part.items()}
            data = in_short(documents, suspects={lane for part, _ in everyone for lane in part})
            self._put(
                fault_name(step),
                step=step,
                why=why,
                suspects=data,
                values={name: _plain(value) for name, value in values.items()},
                documents={f"lane {lane}": documents[lane] for lane in sorted(documents)},
            )
            return data

        everyone = self._of_all_ranks(step)
        return agreed(put)

    def _of_all_ranks(self, step: int) -> list[_OfRank]:
        """Each rank's suspects and documents, on rank 0. Each asks for its own: they may be millions of tokens."""
        documents: Mapping[int, Sequence[str]]
        try:
            documents = self._trainee.documents(step)
        except (ArtifactError, OSError) as error:
            # Raised here alone, it would leave the other ranks waiting; and what matters more is the step.
            log.warning("documents of step %d cannot be named: %s", step, error)
            documents = {}
        mine = (list(self._trainee.suspects()), dict(documents))
        everyone: list[_OfRank] = [mine] * dist.get_world_size()
        dist.gather_object(mine, everyone if dist.get_rank() == 0 else None)
        return everyone

    def write_rewind(self, gone: Rewind, *, why: str) -> None:
        """Writes down a stretch that is passed over; its steps that stood out have files of their own."""
        if dist.get_rank() == 0:
            self._put(rewind_name(gone.last), why=why, passed_over=gone.model_dump())

    def _put(self, name: str, **about: Any) -> None:
        self._store.write(f"{self._folder}/{name}", json.dumps(about, indent=1).encode() + b"\n")


def in_short(documents: Mapping[int, Sequence[str]], *, suspects: Collection[int]) -> str:
    """A few documents of the lanes that are suspects; of all lanes where none is more so than others."""
    lanes = sorted(set(suspects) & set(documents)) or sorted(documents)
    told = [
        f"lane {lane}: {', '.join(documents[lane][:TOLD_DOCUMENTS])}"
        + _more(len(documents[lane]) - TOLD_DOCUMENTS, "")
        for lane in lanes[:TOLD_LANES]
    ]
    return "; ".join(told) + _more(len(lanes) - TOLD_LANES, " lanes")


def _more(count: int, of: str) -> str:
    return f" and {count} more{of}" if count > 0 else ""


def fault_name(step: int) -> str:
    """The file about a step at fault, relative to the artifact's folder."""
    return f"{FAULTS}/step-{step:06d}.json"


def rewind_name(step: int) -> str:
    """The file about a stretch that is passed over, by its last step; relative to the artifact's folder."""
    return f"{FAULTS}/rewind-{step:06d}.json"


def trailing(steps: Sequence[int]) -> int:
    """How many of the last steps follow one another."""
    count = 0
    while count < len(steps) and steps[-1 - count] == steps[-1] - count:
        count += 1
    return count


def remedy(config: LoopConfig) -> str:
    """What a person may change."""
    return (
        f"check these rows, or lower lr (peak {config.lr}) or raise "
        f"warmup_steps ({config.warmup_steps})"
    )


def _plain(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
