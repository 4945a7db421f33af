"""Targets: what is predicted of a noised image, and what a prediction says of clean latent and noise.

A target is a sum, noise_share * noise + clean_share * x_0, as x_t is one: two equations in x_0 and noise. So
one formula turns the prediction of any target on any schedule back into both.
Axes: m = images, t = timesteps.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.diffusion.config import TargetName
from transfusion.diffusion.schedules import NoisePath, at_images


class Shares(NamedTuple):
    """A target as tables over the timesteps of a schedule."""

    noise: Float[Tensor, " t"]
    clean: Float[Tensor, " t"]


def _epsilon(path: NoisePath) -> Shares:
    """The noise. Source: Ho et al. 2020, arXiv:2006.11239."""
    return Shares(noise=torch.ones_like(path.noise), clean=torch.zeros_like(path.noise))


def _v(path: NoisePath) -> Shares:
    """Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D."""
    return Shares(noise=path.signal, clean=-path.noise)


def _flow(path: NoisePath) -> Shares:
    """The velocity along the straight path. Source: Liu et al. 2022, arXiv:2209.03003."""
    return Shares(noise=torch.ones_like(path.noise), clean=-torch.ones_like(path.noise))


TARGETS: Mapping[TargetName, Callable[[NoisePath], Shares]] = MappingProxyType(
    {"epsilon": _epsilon, "v": _v, "flow": _flow}
)


def target_of(
    name: TargetName,
    latents: Float[Tensor, "m c h w"],
    noise: Float[Tensor, "m c h w"],
    timesteps: Int[Tensor, " m"],
    path: NoisePath,
) -> Float[Tensor, "m c h w"]:
    """What a perfect prediction of each image would be, in fp32."""
    shares = TARGETS[name](path)
    return (
        at_images(shares.noise, timesteps) * noise.float()
        + at_images(shares.clean, timesteps) * latents.float()
    )


def clean_and_noise(
    name: TargetName,
    prediction: Float[Tensor, "m c h w"],
    noisy: Float[Tensor, "m c h w"],
    timesteps: Int[Tensor, " m"],
    path: NoisePath,
) -> tuple[Float[Tensor, "m c h w"], Float[Tensor, "m c h w"]]:
    """The clean latents and the noise that a prediction stands for, in fp32.

    With the target `epsilon` the clean latents grow without bound where next to no signal is left.
    """
    shares = TARGETS[name](path)
    signal, noise = at_images(path.signal, timesteps), at_images(path.noise, timesteps)
    of_noise, of_clean = at_images(shares.noise, timesteps), at_images(shares.clean, timesteps)
    scale = at_images(determinant(name, path), timesteps)
    x, y = noisy.float(), prediction.float()
    return (of_noise * x - noise * y) / scale, (signal * y - of_clean * x) / scale


def determinant(name: TargetName, path: NoisePath) -> Float[Tensor, " t"]:
    """Of the two equations. Noise factor over this is what an error in the target becomes in the clean latent."""
    shares = TARGETS[name](path)
    return path.signal * shares.noise - path.noise * shares.clean
