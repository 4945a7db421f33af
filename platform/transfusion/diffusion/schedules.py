"""Noise schedules: how much signal and how much noise there is at integer time t.

Convention: x_t = signal_t * x_0 + noise_t * noise, t in 0..num_timesteps-1, t = 0 all but clean.
Axes: m = images, t = timesteps.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.diffusion.config import BetaScheduleName, ScheduleName


class NoisePath(NamedTuple):
    """A schedule as tables over its timesteps, in fp32."""

    signal: Float[Tensor, " t"]
    """Factor of the clean latent."""
    noise: Float[Tensor, " t"]
    """Factor of the noise."""

    def to(self, device: torch.device | str) -> "NoisePath":
        """The same tables on another device."""
        return NoisePath(self.signal.to(device), self.noise.to(device))


def noise_path(name: ScheduleName, num_timesteps: int = 1000) -> NoisePath:
    """The tables of a schedule."""
    return SCHEDULES[name](num_timesteps)


def add_noise(
    latents: Float[Tensor, "m c h w"],
    noise: Float[Tensor, "m c h w"],
    timesteps: Int[Tensor, " m"],
    path: NoisePath,
) -> Float[Tensor, "m c h w"]:
    """x_t in fp32, of each image at its own timestep.

    Args:
        timesteps: Integers: in bf16 only 507 of 1,000 stay apart.
        path: On the device of the latents.
    """
    return (
        at_images(path.signal, timesteps) * latents.float()
        + at_images(path.noise, timesteps) * noise.float()
    )


def at_images(table: Float[Tensor, " t"], timesteps: Int[Tensor, " m"]) -> Float[Tensor, "m 1 1 1"]:
    """The entry of each image, to be multiplied with its latent."""
    return rearrange(table[timesteps], "m -> m 1 1 1")


def alphas_cumprod(name: BetaScheduleName, num_timesteps: int = 1000) -> Float[Tensor, " t"]:
    """The share of signal variance, a_t, at every timestep of a schedule that keeps variance, in fp32."""
    return torch.cumprod(1.0 - BETAS[name](num_timesteps), dim=0)


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


BETAS: Mapping[BetaScheduleName, Callable[[int], Tensor]] = MappingProxyType(
    {"cosine": cosine_betas, "linear": linear_betas}
)


def straight_path(num_timesteps: int) -> NoisePath:
    """The straight line of rectified flow, from the clean latent at the first timestep to noise at the last.

    Source: Liu et al. 2022, arXiv:2209.03003.
    """
    noise = torch.linspace(0.0, 1.0, num_timesteps)
    return NoisePath(signal=1.0 - noise, noise=noise)


def _keeping_variance(name: BetaScheduleName) -> Callable[[int], NoisePath]:
    def path(num_timesteps: int) -> NoisePath:
        share = alphas_cumprod(name, num_timesteps)
        return NoisePath(signal=share.sqrt(), noise=(1.0 - share).sqrt())

    return path


SCHEDULES: Mapping[ScheduleName, Callable[[int], NoisePath]] = MappingProxyType(
    {
        "cosine": _keeping_variance("cosine"),
        "linear": _keeping_variance("linear"),
        "straight": straight_path,
    }
)
