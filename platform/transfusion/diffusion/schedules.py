"""Noise schedules: how much signal is left at integer time t.

Convention: x_t = sqrt(a_t) * x_0 + sqrt(1 - a_t) * noise, t in 0..num_timesteps-1, t = 0 all but clean.
Axes: m = images, t = timesteps.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.diffusion.config import ScheduleName


def alphas_cumprod(name: ScheduleName, num_timesteps: int = 1000) -> Float[Tensor, " t"]:
    """The share of signal variance, a_t, at every timestep, in fp32."""
    return torch.cumprod(1.0 - SCHEDULES[name](num_timesteps), dim=0)


def add_noise(
    latents: Float[Tensor, "m c h w"],
    noise: Float[Tensor, "m c h w"],
    timesteps: Int[Tensor, " m"],
    schedule: Float[Tensor, " t"],
) -> Float[Tensor, "m c h w"]:
    """x_t in fp32, of each image at its own timestep.

    Args:
        timesteps: Integers: in bf16 only 507 of 1,000 stay apart.
        schedule: What `alphas_cumprod` gave, on the device of the latents.
    """
    signal = rearrange(schedule[timesteps], "m -> m 1 1 1")
    return signal.sqrt() * latents.float() + (1.0 - signal).sqrt() * noise.float()


def cosine_betas(num_timesteps: int) -> Float[Tensor, " t"]:
    """Cosine schedule with offset 0.008 and betas clipped at 0.999.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - signal((i + 1) / num_timesteps) / signal(i / num_timesteps), 0.999)
        for i in range(num_timesteps)
    ]
    return torch.tensor(betas, dtype=torch.float32)


def linear_betas(num_timesteps: int) -> Float[Tensor, " t"]:
    """Betas from 1e-4 to 0.02 at 1,000 steps.

    Source: Ho et al. 2020, arXiv:2006.11239, section 4.
    """
    scale = 1000 / num_timesteps
    return torch.linspace(scale * 1e-4, min(scale * 0.02, 0.999), num_timesteps)


SCHEDULES: Mapping[ScheduleName, Callable[[int], Tensor]] = MappingProxyType(
    {"cosine": cosine_betas, "linear": linear_betas}
)
