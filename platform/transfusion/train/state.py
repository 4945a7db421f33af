"""What a checkpoint holds of the training itself: weights, their average, the optimizer."""

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from transfusion.train.adam import make_optimizer
from transfusion.train.checkpoints.checkpoint import Checkpoints
from transfusion.train.checkpoints.record import CheckpointRecord
from transfusion.train.loop_config import LoopConfig
from transfusion.train.parallel import AveragedWeights, local
from transfusion.train.schedule import checkpoint_mean_decay, ema_decay, learning_rate

log = logging.getLogger(__name__)


class TrainingState:
    """A sharded model with its optimizer and averaged weights. Every method is for all ranks, together."""

    def __init__(self, model: nn.Module, config: LoopConfig) -> None:
        self.model = model
        self.averaged = AveragedWeights(model, kept=config.ema_decay > 0)
        self._config = config
        if config.warmup_steps > config.steps:
            log.warning(
                "the learning rate ends at %.0f%% of lr: warmup_steps is %d of %d steps; 5 to 8%% is usual",
                100 * config.steps / config.warmup_steps,
                config.warmup_steps,
                config.steps,
            )
        self._optimizer = make_optimizer(model, config)

    def rate(self, step: int) -> float:
        """Learning rate of an update."""
        config = self._config
        return learning_rate(
            step,
            peak=config.lr,
            lowest=min(config.min_lr, config.lr),
            warmup_steps=config.warmup_steps,
            total_steps=config.steps,
        )

    def clip(self) -> Tensor:
        """Scales the gradients down to the limit; returns their global norm before, which may be NaN.

        Nothing waits for a device before the norm is made a number.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, step: int) -> None:
        """One update by the gradients that are there, and of the average."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)
        self._optimizer.step()
        self.drop_gradients()
        self.averaged.update(decay=self._decay(step))

    def _decay(self, step: int) -> float:
        config = self._config
        if not config.average_checkpoints:
            return ema_decay(step, limit=config.ema_decay)
        return checkpoint_mean_decay(
            step,
            total_steps=config.steps,
            every_steps=config.checkpoint_every_steps,
            count=config.average_checkpoints,
        )

    def drop_gradients(self) -> None:
        """Forgets the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def pass_over(self, step: int) -> None:
        """Makes no update: the step leaves no trace, in the moments neither.

        A mean of checkpoints is of the weights at their steps, whether or not a step moved them.
        """
        self.drop_gradients()
        if self._config.average_checkpoints and (decay := self._decay(step)) < 1:
            self.averaged.update(decay=decay)

    def not_finite(self) -> list[str]:
        """Names of weights that hold a NaN or an infinity on any rank."""
        names = [name for name, _ in self.model.named_parameters()]
        wrong = torch.stack(
            [(~local(weight).isfinite()).any() for weight in self.model.parameters()]
        ).int()
        dist.all_reduce(wrong)
        return [name for name, bad in zip(names, wrong.tolist(), strict=True) if bad]

    def as_dict(self) -> dict[str, Any]:
        """For DCP; shares memory with what is trained."""
        return self._saved(*self._parts())

    def load(self, checkpoints: Checkpoints, record: CheckpointRecord) -> None:
        """Takes everything from a checkpoint."""
        model, optimizer = self._parts()
        state = self._saved(model, optimizer)
        checkpoints.load(state, record)
        for name, count in zip(sorted(optimizer["state"]), state["updates"], strict=True):
            optimizer["state"][name]["step"] = count.clone()
        set_model_state_dict(self.model, model)
        set_optimizer_state_dict(self.model, self._optimizer, optimizer)

    def _parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the model and the optimizer, by the names of parameters."""
        # First: it puts back what a forward has gathered, and only then are the weights those of the optimizer.
        model = get_model_state_dict(self.model)
        fresh = not self._optimizer.state
        optimizer = get_optimizer_state_dict(self.model, self._optimizer)
        if fresh:
            # Asked before its first update, torch fills in the moments by a step of nothing, and counts that step:
            # a run saved while all its steps were passed over would go on with other corrections of the moments.
            for state in self._optimizer.state.values():
                state["step"].zero_()
            optimizer = get_optimizer_state_dict(self.model, self._optimizer)
        return model, optimizer

    def _saved(self, model: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
        """What goes into files. Rates, decay and the like are the config's.

        Update counts go into one tensor: DCP spreads values that every rank holds over all ranks' files, so a rank
        that read one count a parameter would open them all.
        """
        states = optimizer["state"]
        return {
            "model": model,
            "moments": {
                name: {key: value for key, value in state.items() if key != "step"}
                for name, state in states.items()
            },
            "updates": torch.stack([states[name]["step"] for name in sorted(states)]),
            # Not kept, it is the weights themselves, and would be written twice.
            "average": self.averaged.weights if self.averaged.kept else {},
        }
