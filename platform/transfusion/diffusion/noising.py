"""A batch's images as the model is to see them, and what it is to say of them.

Axes: m = images, t = timesteps.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transfusion.diffusion.config import NoiseConfig, ObjectiveConfig, TargetName
from transfusion.diffusion.schedules import NoisePath, add_noise, noise_path
from transfusion.diffusion.targets import target_of
from transfusion.diffusion.variance import VarianceRange
from transfusion.diffusion.weightings import loss_weights


class Noised(NamedTuple):
    """Images at their timesteps, in fp32."""

    latents: Float[Tensor, "m c h w"]
    """With their noise: what the model is given."""
    target: Float[Tensor, "m c h w"]
    """What it is to predict."""
    weight: Float[Tensor, " m"] | None
    """What the error of each image counts; None where all count 1."""
    variance: VarianceRange | None = None
    """Of the steps, where their variance is learned."""


class Noising(NamedTuple):
    """An objective on one device."""

    target: TargetName
    path: NoisePath
    weights: Float[Tensor, " t"] | None
    variance: VarianceRange | None = None

    @classmethod
    def of(cls, config: NoiseConfig, *, device: torch.device | str = "cpu") -> "Noising":
        """The tables of an objective; those of a bare `NoiseConfig` weigh all timesteps alike."""
        path = noise_path(config.schedule, config.num_timesteps)
        weights = None
        if isinstance(config, ObjectiveConfig):
            weights = loss_weights(
                config.loss_weighting, config.target, path, gamma=config.min_snr_gamma
            )
        return cls(
            target=config.target,
            path=path.to(device),
            weights=None if weights is None else weights.to(device),
            variance=None if config.variance == "fixed" else VarianceRange.of(config).to(device),
        )

    def apply(
        self,
        latents: Float[Tensor, "m c h w"],
        noise: Float[Tensor, "m c h w"],
        timesteps: Int[Tensor, " m"],
        clean: Bool[Tensor, " m"] | None = None,
    ) -> Noised:
        """Noises each image at its own timestep.

        Args:
            clean: Images that are left as they are, to the bit: even the first timestep adds some noise.
        """
        noisy = add_noise(latents, noise, timesteps, self.path)
        if clean is not None:
            noisy = torch.where(rearrange(clean, "m -> m 1 1 1"), latents.float(), noisy)
        return Noised(
            latents=noisy,
            target=target_of(self.target, latents, noise, timesteps, self.path),
            weight=None if self.weights is None else self.weights[timesteps],
            variance=self.variance,
        )
