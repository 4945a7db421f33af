"""What is done about a step whose loss or gradient norm stands out: told, passed over, or gone back from.

To go back is to take weights, moments and averages from a checkpoint before the spike, as PaLM did
(arXiv:2204.02311, section 5.1). The place in the data stays: all batches since are passed over, and the learning
rate is that of the plan. A checkpoint follows at once, so that a run that is killed later goes on from there; one
that is killed before comes to the same spike and goes back as far.
"""

import logging
from collections.abc import Callable, Mapping

import torch.distributed as dist

from transfusion.train.checkpoints.checkpoint import Checkpoints
from transfusion.train.checkpoints.record import CheckpointRecord
from transfusion.train.faults import Skips, SpikeError, remedy
from transfusion.train.loop_config import LoopConfig
from transfusion.train.spikes import SpikeMemory, checkpoints_before, judge, rewound
from transfusion.train.state import TrainingState

log = logging.getLogger(__name__)


class OnSpike:
    """Makes the updates of a run, but for those that its policy is against. Every method is for all ranks."""

    def __init__(
        self, config: LoopConfig, state: TrainingState, checkpoints: Checkpoints, skips: Skips
    ) -> None:
        self.memory = SpikeMemory()
        """What a checkpoint keeps, and a resumed run begins with."""
        self.shown: dict[str, str] = {}
        """For the progress line."""
        self._config = config
        self._state = state
        self._checkpoints = checkpoints
        self._skips = skips

    def update(
        self, step: int, values: Mapping[str, float], *, before_going_back: Callable[[], None]
    ) -> dict[str, float]:
        """The update by the gradients that are there, unless the step stands out; returns marks for its row.

        Raises:
            SpikeError: The run cannot go back, or too many steps in a row made no update.
        """
        config = self._config
        if config.on_spike == "off":
            self._state.update(step)
            return {}
        found, self.memory = judge(self.memory, config.spikes, step=step, values=values)
        if not found:
            self._state.update(step)
            return {}
        why = ", ".join(stands.told(name) for name, stands in found.items())
        data = self._skips.write(step, why=why, values=values)
        marks = {"spike": 1.0}
        stayed = len(self.memory.high) >= config.spikes.rewind_after_steps
        if config.on_spike == "skip":
            self._state.pass_over(step)
            self._skips.count(step, why=why, data=data, error=SpikeError)
            marks["skipped"] = 1.0
        elif config.on_spike == "rewind" and stayed:
            self._state.drop_gradients()
            before_going_back()
            marks["rewound_steps"] = float(self._go_back(step, why=why, data=data))
        else:
            self._state.update(step)
            if dist.get_rank() == 0:
                log.warning("step %d stands out: %s; its data: %s", step, why, data)
        self.shown["spike at"] = str(step)
        return marks

    def went_back_at(self, step: int) -> bool:
        """Whether the run went back when it had seen this step."""
        return bool(self.memory.rewinds) and self.memory.rewinds[-1].last == step

    def needed_from(self, done: int) -> int | None:
        """The oldest checkpoint that may still be gone back to, after so many steps; None where none is."""
        if self._config.on_spike != "rewind":
            return None
        return max(self._before(min([*self.memory.high, done])), default=0)

    def _before(self, begin: int) -> list[int]:
        return checkpoints_before(
            begin,
            config=self._config.spikes,
            every=self._config.checkpoint_every_steps,
            rewinds=self.memory.rewinds,
        )

    def _go_back(self, step: int, *, why: str, data: str) -> int:
        """Takes the state from before the spike; returns how many steps are passed over."""
        memory, limit = self.memory, self._config.spikes.max_rewinds
        begin = memory.high[0]
        told = f"step {step}: the loss has stayed high since step {begin}: {why}"
        if len(memory.rewinds) == limit:
            passed = ", ".join(f"{one.first} to {one.last}" for one in memory.rewinds)
            raise SpikeError(
                f"{told}; the run has gone back {limit} times already (max_rewinds), over steps {passed}; "
                f"its data: {data}; {remedy(self._config)}"
            )
        record = self._record_before(begin, told=f"{told}; its data: {data}")
        self._state.load(self._checkpoints, record)
        for gone in range(record.step, step + 1):
            self._state.pass_over(gone)
        self._skips.steps = list(record.skipped)
        self.memory = rewound(memory, record.spikes, step=step, to=record.step)
        self._skips.write_rewind(self.memory.rewinds[-1], why=told)
        if dist.get_rank() == 0:
            log.warning(
                "%s; the run goes back to the checkpoint of step %d, and steps %d to %d are passed over",
                told, record.step, record.step, step,
            )  # fmt: skip
        return step + 1 - record.step

    def _record_before(self, begin: int, *, told: str) -> CheckpointRecord:
        config, steps = self._config, self._before(begin)
        record = self._checkpoints.newest(steps)
        if record is None:
            raise SpikeError(
                f"{told}; there is no whole checkpoint from before step {begin} to go back to: lower "
                f"checkpoint_every_steps ({config.checkpoint_every_steps}), or {remedy(config)}"
            )
        margin = config.spikes.rewind_margin_steps
        if record.step > begin - margin and dist.get_rank() == 0:
            log.warning(
                "no checkpoint is %d steps older than step %d (rewind_margin_steps); the oldest is taken, of "
                "step %d", margin, begin, record.step,
            )  # fmt: skip
        return record
