"""What the loop asks of whatever it trains, and what it hands back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from transfusion.train.loop_config import LoopConfig
from transfusion.train.parallel import AveragedWeights
from transfusion.train.pictures import Preview


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step computed, summed over ranks."""

    values: Mapping[str, float]
    """Losses and counts of the global batch, the same on every rank; `loss` is there. They may be NaN. With
    `grad_norm` among them the loop waits for no other."""
    shown: Mapping[str, str]
    """The few of them that the progress line shows."""
    rates: Mapping[str, float]
    """Things done in the step by name, such as tokens: becomes `tokens_per_s`."""
    data_s: float
    """Time spent waiting for the batch on this rank."""
    forward_s: float | None = None
    """Time in forwards on this rank, where it was measured; so with `backward_s`."""
    backward_s: float | None = None
    flops: float | None = None
    """Of the products that the step asks for, on all ranks, where the trainee counts them."""
    peak_flops_per_s: float | None = None
    """What all ranks' devices could compute at most, where it is known."""
    stop: bool = False
    """Whether any rank handed in `stop`."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What goes with the files of a result."""

    metadata: dict[str, Any]
    metrics: dict[str, float]


@runtime_checkable
class Trainee(Protocol):
    """What is trained. Every method is called by all ranks, together."""

    config: LoopConfig

    model: nn.Module
    """Sharded already."""

    def forward_backward(self, step: int, *, stop: bool = False) -> StepResult:
        """Adds the gradients of the loss of global batch `step`.

        Args:
            stop: This rank was asked to end; it rides in the sum over ranks that a step makes anyway.
        """

    def validate(self) -> Mapping[str, float]:
        """Losses on held-out data, the same data, times and noise whenever it is called."""

    def preview(self, averaged: AveragedWeights) -> Preview | None:
        """Pictures to look at, on rank 0; gathering the weights for them is for every rank."""

    def suspects(self) -> Sequence[int]:
        """Of this rank's lanes those whose loss was no number in the last step; no collective."""

    def documents(self, step: int) -> Mapping[int, Sequence[str]]:
        """What this rank's lanes of a step were made of, by lane; no collective.

        Raises:
            ArtifactError: It cannot be read.
        """

    def write(self, folder: Path, *, averaged: AveragedWeights) -> Written:
        """Writes the result's files into a local folder, on rank 0; gathering them is for every rank."""
