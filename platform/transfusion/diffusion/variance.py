"""The variance of a step of DDPM, where it is learned.

A step goes from x_t to a normal of which the schedule knows the variance but for a range: from that of the true
step where the clean latent is known to that of the forward step. The model says of every element where in the
logarithm of the range it lies, -1 at the lower end and 1 at the upper.
Source: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1.
Axes: m = images, c h w = latent, t = timesteps.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.diffusion.config import NoiseConfig
from transfusion.diffusion.schedules import BETAS, NoisePath, at_images
from transfusion.diffusion.targets import determinant


class VarianceRange(NamedTuple):
    """The steps of a schedule as tables over its timesteps, in fp32."""

    low: Float[Tensor, " t"]
    """Logarithm of the true step's variance. The step from t = 0 has none, and borrows that of t = 1."""

    high: Float[Tensor, " t"]
    """Logarithm of the forward step's variance, beta."""

    mean: Float[Tensor, " t"]
    """What an error in the target becomes in the mean of the step."""

    @classmethod
    def of(cls, noise: NoiseConfig) -> "VarianceRange":
        """The range of a schedule that keeps variance; the straight one has none."""
        assert noise.schedule != "straight"
        beta = BETAS[noise.schedule](noise.num_timesteps).double()
        share = torch.cumprod(1 - beta, dim=0)
        before = torch.cat([share.new_ones(1), share[:-1]])
        posterior = beta * (1 - before) / (1 - share)
        posterior[0] = posterior[1]
        # The mean is a sum of x_t, which is known, and of the clean latent: Ho et al. 2020, eq. 7.
        of_clean = beta * before.sqrt() / (1 - share)
        path = NoisePath(signal=share.sqrt(), noise=(1 - share).sqrt())
        error = path.noise / determinant(noise.target, path)
        return cls(posterior.log().float(), beta.log().float(), (of_clean * error).float())

    def to(self, device: torch.device | str) -> "VarianceRange":
        """The same tables on another device."""
        return VarianceRange(*(table.to(device) for table in self))

    def log_variance(
        self, said: Float[Tensor, "m c h w"], timesteps: Int[Tensor, " m"]
    ) -> Float[Tensor, "m c h w"]:
        """Of each element's step, in fp32. Nothing holds the model to the range."""
        low, high = at_images(self.low, timesteps), at_images(self.high, timesteps)
        return low + (said.float() + 1) / 2 * (high - low)

    def bound(
        self,
        said: Float[Tensor, "m c h w"],
        error: Float[Tensor, "m c h w"],
        timesteps: Int[Tensor, " m"],
    ) -> Float[Tensor, " m"]:
        """The variational bound's term of each image's timestep, in bits an element, in fp32.

        The divergence of the true step from the model's; at t = 0 the negative log-likelihood of the latent. That
        is a density: latents are no integers, as the pixels of the source are, so it may be below 0.

        Args:
            error: Of the predicted target. No gradient goes into it: the bound teaches the variance alone.
        """
        ours, true = self.log_variance(said, timesteps), at_images(self.low, timesteps)
        squared = (at_images(self.mean, timesteps) * error.detach().float()).square()
        first = rearrange(timesteps == 0, "m -> m 1 1 1")
        # Twice both terms, in nats: what they share, and what only one has.
        rest = torch.where(first, math.log(2 * math.pi), torch.exp(true - ours) - true - 1)
        nats = 0.5 * (ours + squared * torch.exp(-ours) + rest)
        return reduce(nats, "m c h w -> m", "mean") / math.log(2)
