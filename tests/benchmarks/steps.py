"""The real training step in a world of one process: sharded, clipped, optimised, averaged."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from transfusion.model.config import ModelConfig
from transfusion.sequence.batch import PackedBatch
from transfusion.train.config import TrainConfig
from transfusion.train.loop_config import Precision
from transfusion.train.parallel import set_precision
from transfusion.train.source import BatchSource
from transfusion.train.state import TrainingState
from transfusion.train.step import TransformerTrainee
from transfusion.train.trainee import StepResult


class OneBatch:
    """The same batch at every step."""

    lanes = 1
    num_validation = 0

    def __init__(self, batch: PackedBatch) -> None:
        self._batch = batch

    def micro_batch(self, step: int, lane: int) -> PackedBatch:
        """The batch."""
        return self._batch

    def zero_batch(self) -> PackedBatch:
        """Never asked for: one lane, one rank."""
        return self._batch

    def validation(self, index: int) -> PackedBatch:
        """Never asked for: there is none."""
        return self._batch

    def document_ids(self, step: int, lane: int) -> Sequence[str]:
        """It has no documents."""
        return []


class Training:
    """Steps as the training loop takes them, without checkpoints and metrics."""

    def __init__(
        self,
        source: BatchSource,
        model: ModelConfig,
        *,
        precision: Precision,
        num_pieces: int,
        latent_channels: int,
        device: str = "cpu",
    ) -> None:
        self._device = torch.device(device)
        self.config = TrainConfig(steps=10**6, seed=0, model=model, precision=precision)
        self.trainee = TransformerTrainee(
            self.config,
            source,
            num_pieces=num_pieces,
            latent_channels=latent_channels,
            device=self._device,
        )
        self._state = TrainingState(self.trainee.model, self.config)
        self._step = 0

    def step(self) -> StepResult:
        """One update of the weights."""
        set_precision(self.config.precision, device=self._device, cpu_threads=1)
        result = self.trainee.forward_backward(self._step)
        self._state.clip()
        self._state.update(self._step)
        self._step += 1
        return result


def with_precision(precision: Precision, run: Callable[[], Any]) -> Callable[[], None]:
    """Runs something as training of that precision would on this CPU."""

    def wrapped() -> None:
        set_precision(precision, device=torch.device("cpu"), cpu_threads=1)
        run()

    return wrapped
