"""Embedding of the timestep, in fp32 whatever the precision of the model.

In bf16 only 507 of 1,000 timesteps stay apart.
Axes: m = images, d = width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


def sinusoid(timesteps: Int[Tensor, " m"], dim: int) -> Float[Tensor, "m d"]:
    """Cosines and sines of the integer timestep at `dim` / 2 frequencies from 1 to 1/10,000.

    Source: Ho et al. 2020, arXiv:2006.11239, after Vaswani et al. 2017.
    """
    half = dim // 2
    exponent = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    angles = rearrange(timesteps.float(), "m -> m 1") * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeMLP(nn.Module):
    """A two-layer MLP of the sinusoid."""

    def __init__(self, dim: int, *, sinusoid_dim: int = 256) -> None:
        super().__init__()
        self.sinusoid_dim = sinusoid_dim
        self.hidden = nn.Linear(sinusoid_dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, timesteps: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """The embedding in fp32; the weights may be of a lower precision."""
        x = sinusoid(timesteps, self.sinusoid_dim)
        x = F.silu(F.linear(x, self.hidden.weight.float(), self.hidden.bias.float()))
        return F.linear(x, self.out.weight.float(), self.out.bias.float())
