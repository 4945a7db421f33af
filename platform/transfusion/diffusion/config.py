"""What is asked of the noise: names and numbers, without torch, so that a plan can read them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Config

BetaScheduleName = Literal["cosine", "linear"]
ScheduleName = Literal[BetaScheduleName, "straight"]
TargetName = Literal["epsilon", "v", "flow"]
TimestepDraw = Literal["uniform", "logit_normal"]
LossWeighting = Literal["none", "min_snr", "truncated_snr"]
VarianceName = Literal["fixed", "learned_range"]
SolverName = Literal["ddpm", "ddim", "dpm++", "unipc"]

SOLVER_STEPS: Mapping[SolverName, tuple[int, int]] = MappingProxyType(
    {"ddpm": (100, 1000), "ddim": (50, 1000), "dpm++": (10, 250), "unipc": (10, 250)}
)
"""Fewest and most steps of a solver. Fewer shrink the standard deviation of latents by more than .05; more start
too close to pure noise for a solver that cannot clamp."""

STRAIGHT_SOLVERS: tuple[SolverName, ...] = ("ddim", "dpm++", "unipc")
"""Solvers of the straight schedule, where DDIM's step is Euler's."""


def check_solver(name: SolverName, *, schedule: ScheduleName) -> None:
    """Refuses a solver that is not made for the schedule.

    Raises:
        ValueError: With the solvers that are.
    """
    if schedule == "straight" and name not in STRAIGHT_SOLVERS:
        raise ValueError(
            f"solver must be one of {', '.join(STRAIGHT_SOLVERS)} for a model of schedule {schedule!r}, got "
            f"{name!r}, which adds noise as it goes"
        )


class NoiseConfig(Config):
    """How images are noised and what is predicted of them: all that a sampler must know."""

    schedule: ScheduleName = "cosine"
    """Noise schedule: `cosine` is the paper's, `linear` MonoFormer's, `straight` that of rectified flow."""

    num_timesteps: int = Field(default=1000, ge=2)
    """Timesteps of the noise schedule."""

    target: TargetName = "epsilon"
    """What is predicted: the noise; `v`, which keeps its scale from clean to noise; or the velocity of `flow`."""

    timestep_shift: float = Field(default=1.0, ge=1, le=3)
    """More of the timesteps, drawn and sampled, are noisy ones: larger images need more noise to hide as much. 1
    leaves them as they are, 3 is usual at 1,024 px; with 4, ten steps no longer keep the variance of latents.
    Of the straight schedule alone."""

    variance: VarianceName = "fixed"
    """What noise a step of DDPM adds: `fixed` to the posterior's variance, the smaller of the two that Ho et al.
    2020 tried (the Transfusion paper does not say which it took), or `learned_range`, where the model says of
    every element how far between the schedule's bounds it lies (Nichol and Dhariwal 2021; DiT, MonoFormer). It
    then has twice the channels to predict; solvers that add no noise leave them out."""

    @model_validator(mode="after")
    def _belong_together(self) -> "NoiseConfig":
        straight = self.schedule == "straight"
        if straight != (self.target == "flow"):
            raise ValueError(
                "target 'flow' and schedule 'straight' go together, and neither goes with another, "
                f"got target {self.target!r} with schedule {self.schedule!r}"
            )
        if self.timestep_shift != 1 and not straight:
            raise ValueError(
                f"timestep_shift must be 1 for schedule {self.schedule!r}, got {self.timestep_shift:g}; "
                "only 'straight' is shifted"
            )
        if self.variance != "fixed" and straight:
            raise ValueError(
                f"variance must be 'fixed' for schedule {self.schedule!r}, got {self.variance!r}; on the straight "
                "schedule no solver adds noise: take 'cosine' or 'linear', with target 'epsilon' or 'v'"
            )
        return self


class ObjectiveConfig(NoiseConfig):
    """What is learned from a batch."""

    diffusion_weight: float = Field(default=5.0, ge=0)
    """Weight of the diffusion loss against the language loss."""

    lm_weight: float = Field(default=1.0, ge=0)
    """Weight of the language loss; MonoFormer, which starts from a language model, has 0.01 beside a
    `diffusion_weight` of 1."""

    vlb_weight: float = Field(default=0.001, ge=0)
    """Of `learned_range`: what the variational bound, in bits an element over all timesteps, counts against the
    squared error. It teaches the variance alone, and `loss_weighting` is not of it."""

    z_loss_weight: float = Field(default=0.0, ge=0)
    """Of the squared logarithm of the softmax's denominator, which keeps it near 1; 1e-5 in Chameleon."""

    noise_limit: int = Field(default=500, ge=1)
    """An image that later text sees draws its timestep below this: text about noise teaches little. Where the plan
    has clean copies, no text does."""

    timestep_draw: TimestepDraw = "uniform"
    """How timesteps are drawn: all alike, or those in the middle more often."""

    logit_mean: float = Field(default=0.0, ge=-10, le=10)
    """Of `logit_normal`: above 0 for more noise, below for less."""

    logit_std: float = Field(default=1.0, gt=0, le=10)
    """Of `logit_normal`: less than 1 gathers timesteps nearer to the middle."""

    loss_weighting: LossWeighting = "none"
    """What the error of an image counts by its timestep."""

    min_snr_gamma: float = Field(default=5.0, gt=0)
    """Of `min_snr`: the ratio of signal to noise, as powers, above which a timestep counts no more."""

    @model_validator(mode="after")
    def _fits_the_noise(self) -> "ObjectiveConfig":
        if self.noise_limit > self.num_timesteps:
            raise ValueError(
                f"noise_limit must be at most num_timesteps {self.num_timesteps}, got {self.noise_limit}"
            )
        if self.loss_weighting == "truncated_snr" and self.target == "epsilon":
            raise ValueError(
                "loss_weighting must not be 'truncated_snr' for target 'epsilon', which would weigh pure noise a "
                "million times the rest; take target 'v', or 'min_snr'"
            )
        return self

    @property
    def bound_weight(self) -> float:
        """What the bound of the one timestep that is drawn counts: it stands for all."""
        return self.vlb_weight * self.num_timesteps
