"""What is done about a step whose loss or gradient is not a number.

Either way the update is not made and the step's documents are written beside the metrics. A step that is
passed over stays so: the checkpoint records it, and the position in the data moves on.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence

import torch.distributed as dist

from transfusion.errors import TransfusionError
from transfusion.storage.store import Store
from transfusion.train.loop_config import LoopConfig
from transfusion.train.trainee import Trainee

log = logging.getLogger(__name__)

FAULTS = "faults"
"""Folder of the files about steps without an update, below the artifact's."""


class NotFiniteError(TransfusionError):
    """A loss or gradient that is not a number, with the place in the data; every rank raises it at once."""


class Skips:
    """The steps that made no update, and whether another may be added. The same on every rank."""

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
        wrong = ", ".join(
            f"{name} {value}" for name, value in values.items() if not math.isfinite(value)
        )
        data = self._trainee.describe(step)
        if dist.get_rank() == 0:
            self._write(step, why=wrong, suspects=data, values=values)
        if config.on_nan == "halt":
            raise NotFiniteError(
                f"step {step}: {wrong}: training stopped before this update was made; its data: {data}; "
                f"{_remedy(config)}"
            )
        self.steps.append(step)
        in_a_row = trailing(self.steps)
        if in_a_row > config.max_skipped_steps:
            raise NotFiniteError(
                f"step {step}: {wrong}: {in_a_row} steps in a row without an update, more than "
                f"max_skipped_steps ({config.max_skipped_steps}); its data: {data}; {_remedy(config)}"
            )
        if dist.get_rank() == 0:
            log.warning("step %d makes no update: %s; its data: %s", step, wrong, data)

    def _write(self, step: int, *, why: str, suspects: str, values: Mapping[str, float]) -> None:
        about = {
            "step": step,
            "why": why,
            "suspects": suspects,
            "values": {name: _plain(value) for name, value in values.items()},
            "documents": self._trainee.documents(step),
        }
        self._store.write(
            f"{self._folder}/{fault_name(step)}", json.dumps(about, indent=1).encode() + b"\n"
        )


def fault_name(step: int) -> str:
    """The file about a step without an update, relative to the artifact's folder."""
    return f"{FAULTS}/step-{step:06d}.json"


def trailing(steps: Sequence[int]) -> int:
    """How many of the last steps follow one another."""
    count = 0
    while count < len(steps) and steps[-1 - count] == steps[-1] - count:
        count += 1
    return count


def _remedy(config: LoopConfig) -> str:
    return (
        f"check these rows, or lower lr (peak {config.lr}) or raise "
        f"warmup_steps ({config.warmup_steps})"
    )


def _plain(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
