"""What every training stage is told, whatever it trains."""

from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Config
from transfusion.train.spikes import SpikeConfig, SpikePolicy

Precision = Literal["fp32", "fp32_bf16_inner", "bf16"]


AdamMoments = Literal["fp32", "bf16"]


class LoopConfig(Config):
    """Optimisation, precision, and how often things are written."""

    steps: int = Field(ge=1)
    """Updates of the weights in all."""

    lr: float = Field(3e-4, gt=0)
    """Peak learning rate; about 1e-3 suits a model of 2 M parameters."""

    min_lr: float = Field(1.5e-5, ge=0)
    """Learning rate of the last step; `lr` where that is lower."""

    warmup_steps: int = Field(0, ge=0)
    """Steps of the linear rise: 5 to 8% of a short run, 4,000 of a run of 250,000. A run that is shorter never
    comes to `lr`, and says so."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""

    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""

    eps: float = Field(1e-8, gt=0)
    """Added to the root of AdamW's second moment."""

    weight_decay: float = Field(0.1, ge=0)
    """On matrices only: norms, embeddings and biases are not decayed."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""

    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Limit of the decay of the averaged weights. 0 keeps no average: the weights themselves stand for it, at no
    cost in memory."""

    average_checkpoints: int = Field(0, ge=0)
    """With so many the averaged weights are the mean of those at the last checkpoints (every
    `checkpoint_every_steps`, and the last step) rather than a moving average; before the first of them they are
    the weights as they are."""

    precision: Precision = "fp32"
    """`fp32`; `fp32_bf16_inner`: fp32 tensors, inner products in bf16 where the hardware is fast at them (AMX,
    tensor cores), and elsewhere oneDNN's fp32 products, up to twice as fast as MKL's on AMD; `bf16`: bf16
    computation with fp32 masters."""

    adam_moments: AdamMoments = "fp32"
    """`bf16` halves the optimizer's state, for models that would not fit; its second moment is too coarse for a
    `beta2` above 0.99."""

    checkpoint_every_steps: int = Field(100, ge=1)
    """A crash costs at most so many steps. The last step always has a checkpoint."""

    keep_checkpoints: int = Field(2, ge=1)
    """The newest so many stay, and what somebody is reading."""

    validate_every_steps: int = Field(100, ge=1)
    """Held-out losses, of raw and of averaged weights, are measured so often, and at the end."""

    preview_every_steps: int = Field(0, ge=0)
    """Draws a row of pictures so often, to be looked at, with the averaged weights; 0 for never. Worker 0 holds
    the whole model for it."""

    on_nan: Literal["halt", "skip"] = "halt"
    """When a loss or gradient is not a number: `halt` ends the run before that update; `skip` makes no update at
    that step and goes on. Either way the step's documents are written to the run's `faults/`."""

    on_spike: SpikePolicy = "off"
    """When the loss or the gradient norm of a step stands out from the steps before: `tell` names the step's
    documents in the run's `faults/` and goes on; `skip` makes no update at that step; `rewind` goes back, once the
    loss has stayed high, to a checkpoint from before, and passes over all batches since. The count of steps and
    the place in the data always go on. With `rewind` checkpoints beyond `keep_checkpoints` stay while they may be
    gone back to."""

    spikes: SpikeConfig = SpikeConfig()
    """What counts as standing out, and how far `rewind` goes back."""

    max_skipped_steps: int = Field(3, ge=0)
    """More steps than these in a row without an update end the run."""

    cpu_threads_per_worker: int = Field(1, ge=1)
    """Part of the identity: another number of threads sums in another order, which shows in the last bits."""

    seed: int = Field(ge=0)
    """Of first weights, noise and timesteps; the order of the data is the mixture's."""

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> "LoopConfig":
        if self.adam_moments == "bf16" and self.beta2 > 0.99:
            raise ValueError(
                f"adam_moments bf16 needs a beta2 of at most 0.99, got {self.beta2}: changes of the second "
                "moment by less than one part in 512 are rounded away; lower beta2 or keep fp32"
            )
        if self.average_checkpoints and not self.ema_decay:
            raise ValueError(
                f"average_checkpoints {self.average_checkpoints} needs averaged weights, and an ema_decay of 0 "
                "keeps none; leave one of them out"
            )
        return self
