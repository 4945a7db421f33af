"""Solvers: diffusers' schedulers with settings that keep the variance of latents.

diffusers' defaults are made for pixels in [-1, 1]. On latents of unit variance a clip at 1 shrinks
the standard deviation to .68, and at the last timesteps of the cosine schedule, where next to no
signal is left, a small error in the prediction grows without bound. So x_0 is clamped at 5 where the
solver can clamp, and every solver starts below the last timestep (leading spacing); DPM-Solver++
where half the log-SNR is -5.1. With the targets `v` and `flow` nothing grows, so they start at the last.
The proof is an exact Gaussian denoiser with 2% error: the standard deviation stays within .05 of 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.config import (
    SOLVER_STEPS,
    BetaScheduleName,
    NoiseConfig,
    SolverName,
    TargetName,
    VarianceName,
    check_solver,
)
from transfusion.diffusion.schedules import BETAS
from transfusion.diffusion.times import shifted

_SETTINGS: Mapping[TargetName, Mapping[str, str]] = MappingProxyType(
    {
        "epsilon": {"prediction_type": "epsilon", "timestep_spacing": "leading"},
        "v": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    }
)
"""How diffusers names the target, and where the steps lie: only `trailing` takes the last timestep."""

_VARIANCES: Mapping[VarianceName, str] = MappingProxyType(
    {"fixed": "fixed_small", "learned_range": "learned_range"}
)
"""How diffusers names what DDPM's steps add."""


@dataclass(frozen=True, slots=True)
class _Solver:
    build: Callable[..., Any]
    """On a schedule that keeps variance."""

    build_straight: Callable[..., Any] | None
    """On the straight schedule; None for those that are not in `STRAIGHT_SOLVERS`."""


def make_solver(name: SolverName, *, num_steps: int, noise: NoiseConfig = NoiseConfig()) -> Any:  # noqa: B008 it is frozen
    """A diffusers scheduler with its timesteps set: `solver.step(prediction, t, x).prev_sample` at each of them.

    A scheduler counts its steps: make one for each image or batch of images. On the straight schedule a
    timestep may be repeated, for it is the nearest integer to where the solver is.

    Raises:
        ValueError: The solver does not keep the variance with so few or so many steps, or is not made for
            the schedule.
    """
    check_steps(name, num_steps=num_steps, num_timesteps=noise.num_timesteps)
    check_solver(name, schedule=noise.schedule)
    if noise.schedule == "straight":
        return _straight(name, num_steps, noise)
    adding = {"variance_type": _VARIANCES[noise.variance]} if name == "ddpm" else {}
    scheduler = SOLVERS[name].build(
        num_train_timesteps=noise.num_timesteps,
        # As numbers: diffusers copies a tensor with a warning.
        trained_betas=_betas(noise.schedule, noise.num_timesteps),
        **_SETTINGS[noise.target],
        **adding,
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


@lru_cache(maxsize=8)
def _betas(schedule: BetaScheduleName, num_timesteps: int) -> list[float]:
    """One solver is made for each image: the table once for all of them. Diffusers copies it."""
    return BETAS[schedule](num_timesteps).tolist()


def solver_input(
    name: SolverName,
    prediction: Float[Tensor, "m c h w"],
    variance: Float[Tensor, "m v h w"],
    *,
    is_last: bool,
) -> Float[Tensor, "m c2 h w"]:
    """What a solver's step is given of a prediction and what is said of its variance, which only DDPM asks for.

    Args:
        variance: No channels where it is fixed.
        is_last: The step that ends at the clean latent: it adds nothing, but diffusers knows it by t = 0 alone,
            where `trailing` steps never come. At the lower end of its range the variance is 0 there.
    """
    if name != "ddpm":
        return prediction
    return torch.cat([prediction, torch.full_like(variance, -1) if is_last else variance], dim=1)


def check_steps(name: SolverName, *, num_steps: int, num_timesteps: int = 1000) -> None:
    """Refuses a number of steps with which the solver does not keep the variance of latents.

    Raises:
        ValueError: With the range that is offered.
    """
    low, most = SOLVER_STEPS[name]
    high = min(most, num_timesteps)
    if not low <= num_steps <= high:
        fewest = min(SOLVER_STEPS, key=lambda other: SOLVER_STEPS[other][0])
        raise ValueError(
            f"num_steps must be {low} to {high} for solver {name!r}, got {num_steps}"
            + (
                f"; {fewest!r} takes {SOLVER_STEPS[fewest][0]} or more"
                if num_steps < low and fewest != name
                else ""
            )
        )


def _ddpm(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(**settings, clip_sample=True, clip_sample_range=5.0)


def _ddim(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**settings, clip_sample=True, clip_sample_range=5.0)


def _dpm(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    lowest = -5.1 if settings["prediction_type"] == "epsilon" else -math.inf
    return DPMSolverMultistepScheduler(**settings, lambda_min_clipped=lowest)


def _unipc(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(**settings)


def _straight(name: SolverName, num_steps: int, noise: NoiseConfig) -> Any:
    """Steps from noise alone to the clean latent, evenly spaced but for the shift."""
    times = [shifted(step / num_steps, noise.timestep_shift) for step in range(num_steps, 0, -1)]
    last = noise.num_timesteps - 1
    build = SOLVERS[name].build_straight
    assert build is not None
    scheduler = build(num_train_timesteps=noise.num_timesteps)
    scheduler.set_timesteps(num_steps)
    # Set afterwards, since not every scheduler takes both. The model knows integer timesteps; diffusers truncates
    # where the nearest is meant.
    scheduler.sigmas = torch.tensor([*times, 0.0])
    # DPM-Solver++ and UniPC take log(1 - sigma), which pure noise makes infinite.
    scheduler.sigmas[0] = times[0] if name == "ddim" else 1 - 1e-6
    scheduler.timesteps = torch.tensor([float(round(time * last)) for time in times])
    scheduler.set_begin_index(0)
    return scheduler


def _euler(**settings: Any) -> Any:
    """DDIM's step on the straight schedule is Euler's: both go on as if the prediction stayed as it is."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    return FlowMatchEulerDiscreteScheduler(**settings)


def _dpm_straight(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        **settings, prediction_type="flow_prediction", use_flow_sigmas=True
    )


def _unipc_straight(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        **settings, prediction_type="flow_prediction", use_flow_sigmas=True
    )


SOLVERS: Mapping[SolverName, _Solver] = MappingProxyType(
    {
        "ddpm": _Solver(_ddpm, None),
        "ddim": _Solver(_ddim, _euler),
        "dpm++": _Solver(_dpm, _dpm_straight),
        "unipc": _Solver(_unipc, _unipc_straight),
    }
)
