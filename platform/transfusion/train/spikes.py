"""Steps whose loss or gradient norm stands out, and which checkpoint is from before it. Pure: no file, no tensor.

A verdict is a function of the values seen so far, which are the same on every rank; what it depends on is in
the record of each checkpoint, so a resumed run comes to the same verdicts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from transfusion.config import Config

SpikePolicy = Literal["off", "tell", "skip", "rewind"]

WATCHED = ("loss", "grad_norm")

DEVIATIONS = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""

LEAST_DEVIATION = 1e-3
"""Of the median: where values hardly differ, a last digit is no spike."""


class SpikeConfig(Config):
    """When a step stands out, and how far a run goes back."""

    threshold: float = Field(8.0, gt=0)
    """Above the median of the steps before, in standard deviations as the median absolute deviation tells them.
    The noise of healthy runs stays below 5."""

    window_steps: int = Field(200, ge=2)
    """Steps before, that median and deviation are taken over."""

    min_history_steps: int = Field(50, ge=2)
    """Nothing stands out before so many were seen."""

    rewind_after_steps: int = Field(10, ge=1)
    """Steps in a row whose loss stands out, until a run goes back."""

    rewind_margin_steps: int = Field(100, ge=1)
    """From the checkpoint that a run goes back to, to the first of those steps: what did the damage came earlier.
    PaLM took about 100. Where none is so old the oldest is taken."""

    max_rewinds: int = Field(3, ge=1)
    """The run ends, naming steps and documents, when it would have to go back once more."""

    @model_validator(mode="after")
    def _history_outlasts_a_spike(self) -> "SpikeConfig":
        if self.min_history_steps > self.window_steps:
            raise ValueError(
                f"min_history_steps must be at most window_steps ({self.window_steps}), got "
                f"{self.min_history_steps}: a window never holds more"
            )
        if 2 * self.rewind_after_steps > self.min_history_steps:
            raise ValueError(
                f"rewind_after_steps must be at most half of min_history_steps ({self.min_history_steps}), got "
                f"{self.rewind_after_steps}: the steps that stand out would become the median"
            )
        return self


class Rewind(BaseModel):
    """A stretch of steps that left nothing in the weights; steps count from 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int
    """First step that is passed over; the checkpoint gone back to is of as many steps."""
    begin: int
    """First step whose loss stayed high."""
    last: int
    """Last step that is passed over, where it was found out."""


class SpikeMemory(BaseModel):
    """What later verdicts depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    history: dict[str, list[float]] = {}
    """Values of the last steps, those that stood out included, by name."""
    high: list[int] = []
    """The last steps, in a row, whose loss stood out."""
    rewinds: list[Rewind] = []
    """Ascending."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a value stands out from those before."""

    value: float
    median: float
    deviations: float
    """Above the median; infinite where those before were all 0."""
    steps: int
    """How many those before are."""

    def told(self, name: str) -> str:
        """For a message: `loss 9.1 is 42.0 deviations above 2.3, the median of 200 steps`."""
        return (
            f"{name} {self.value:.4g} is {self.deviations:.1f} deviations above {self.median:.4g}, "
            f"the median of {self.steps} steps"
        )


def standing(value: float, before: Sequence[float]) -> Standing:
    """Where a value stands among those before."""
    middle = median(before)
    deviation = DEVIATIONS * median(abs(one - middle) for one in before)
    deviation = max(deviation, LEAST_DEVIATION * abs(middle))
    rise = value - middle
    if deviation:
        deviations = rise / deviation
    else:
        deviations = math.inf if rise > 0 else 0.0
    return Standing(value=value, median=middle, deviations=deviations, steps=len(before))


def judge(
    memory: SpikeMemory, config: SpikeConfig, *, step: int, values: Mapping[str, float]
) -> tuple[dict[str, Standing], SpikeMemory]:
    """What stands out in a step, by name, and the memory with that step in it.

    Args:
        values: Finite; of them `WATCHED` are looked at.
    """
    found: dict[str, Standing] = {}
    history: dict[str, list[float]] = {}
    for name in WATCHED:
        before = memory.history.get(name, [])
        if len(before) >= config.min_history_steps:
            stands = standing(values[name], before)
            if stands.deviations > config.threshold:
                found[name] = stands
        history[name] = [*before, values[name]][-config.window_steps :]
    high = [*memory.high, step] if "loss" in found else []
    return found, memory.model_copy(update={"history": history, "high": high})


def checkpoints_before(
    begin: int, *, config: SpikeConfig, every: int, rewinds: Sequence[Rewind]
) -> list[int]:
    """Steps of the checkpoints that may be gone back to from a spike, ascending; none where it is too early.

    They follow from the plan alone, so that a run that was stopped and saved in between goes back as far as
    one that was not. Those within a stretch that was passed over are of weights that were given up.

    Args:
        begin: First step whose loss stayed high.
        every: Steps from one checkpoint to the next.
    """
    latest = max(begin - config.rewind_margin_steps, every)
    if latest >= begin:
        return []
    saved = {*range(every, latest + 1, every), *(one.last + 1 for one in rewinds)}
    return sorted(
        step
        for step in saved
        if step <= latest and not any(one.first < step <= one.last for one in rewinds)
    )


def rewound(memory: SpikeMemory, earlier: SpikeMemory, *, step: int, to: int) -> SpikeMemory:
    """The memory of a run that goes back at a step: of what came before the checkpoint, and of all rewinds."""
    gone = Rewind(first=to, begin=memory.high[0], last=step)
    return SpikeMemory(history=earlier.history, rewinds=[*memory.rewinds, gone])
