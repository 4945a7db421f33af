"""Solvers: diffusers' schedulers with settings that keep the variance of latents.

diffusers' defaults are made for pixels in [-1, 1]. On latents of unit variance a clip at 1 shrinks
the standard deviation to .68, and at the last timesteps of the cosine schedule, where next to no
signal is left, a small error in the prediction grows without bound. So x_0 is clamped at 5 where the
solver can clamp, and every solver starts below the last timestep (leading spacing); DPM-Solver++
where half the log-SNR is -5.1. The proof is an exact Gaussian denoiser with 2% error: the standard
deviation stays within .05 of 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from transfusion.diffusion.config import ScheduleName
from transfusion.diffusion.schedules import SCHEDULES

SolverName = Literal["ddpm", "ddim", "dpm++", "unipc"]


@dataclass(frozen=True, slots=True)
class _Solver:
    build: Callable[..., Any]
    min_steps: int
    """Fewer shrink the standard deviation by more than .05."""

    max_steps: int
    """More start too close to pure noise for a solver that cannot clamp."""


def make_solver(
    name: SolverName,
    *,
    num_steps: int,
    schedule: ScheduleName = "cosine",
    num_timesteps: int = 1000,
) -> Any:
    """A diffusers scheduler with its timesteps set: `solver.step(eps, t, x).prev_sample` at each of them.

    A scheduler counts its steps: make one for each image or batch of images.

    Raises:
        ValueError: The solver does not keep the variance with so few or so many steps.
    """
    check_steps(name, num_steps=num_steps, num_timesteps=num_timesteps)
    scheduler = SOLVERS[name].build(
        num_train_timesteps=num_timesteps,
        # As numbers: diffusers copies a tensor with a warning.
        trained_betas=SCHEDULES[schedule](num_timesteps).tolist(),
        prediction_type="epsilon",
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def check_steps(name: SolverName, *, num_steps: int, num_timesteps: int = 1000) -> None:
    """Refuses a number of steps with which the solver does not keep the variance of latents.

    Raises:
        ValueError: With the range that is offered.
    """
    low = SOLVERS[name].min_steps
    high = min(SOLVERS[name].max_steps, num_timesteps)
    if not low <= num_steps <= high:
        fewest = min(SOLVERS, key=lambda other: SOLVERS[other].min_steps)
        raise ValueError(
            f"num_steps must be {low} to {high} for solver {name!r}, got {num_steps}"
            + (
                f"; {fewest!r} takes {SOLVERS[fewest].min_steps} or more"
                if num_steps < low and fewest != name
                else ""
            )
        )


def _ddpm(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(
        **settings, clip_sample=True, clip_sample_range=5.0, variance_type="fixed_small"
    )


def _ddim(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**settings, clip_sample=True, clip_sample_range=5.0)


def _dpm(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**settings, lambda_min_clipped=-5.1)


def _unipc(**settings: Any) -> Any:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(**settings)


SOLVERS: Mapping[SolverName, _Solver] = MappingProxyType(
    {
        "ddpm": _Solver(_ddpm, min_steps=100, max_steps=1000),
        "ddim": _Solver(_ddim, min_steps=50, max_steps=1000),
        "dpm++": _Solver(_dpm, min_steps=10, max_steps=250),
        "unipc": _Solver(_unipc, min_steps=10, max_steps=250),
    }
)
