"""The Llama block: pre-norm RMSNorm, rotary attention, SwiGLU.

Axes: b = sequences, n = positions, d = width, h = query heads, g = key and value heads, e = head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.model.attention import Attend
from transfusion.model.config import ModelConfig


class Rotation(NamedTuple):
    """Cosine and sine of each position's angles, broadcast over heads; the sine of the first half negated."""

    cos: Float[Tensor, "b 1 n e"]
    sin: Float[Tensor, "b 1 n e"]


def rotation(
    position_ids: Int[Tensor, "b n"], *, head_dim: int, theta: float, dtype: torch.dtype
) -> Rotation:
    """Rotary angles in fp32, their cosines in `dtype`; the halves of a head are the two coordinates.

    Source: Su et al. 2021, arXiv:2104.09864, in the half-split order of Llama's released weights.
    """
    half = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = theta ** (-half / head_dim)
    angles = rearrange(position_ids.float(), "b n -> b 1 n 1") * frequencies
    cos, sin = angles.cos(), angles.sin()
    return Rotation(
        cos=torch.cat([cos, cos], dim=-1).to(dtype), sin=torch.cat([-sin, sin], dim=-1).to(dtype)
    )


def rotate(x: Float[Tensor, "b h n e"], by: Rotation) -> Float[Tensor, "b h n e"]:
    """Turns each pair of coordinates by its position's angle."""
    return torch.addcmul(x * by.cos, x.roll(x.shape[-1] // 2, dims=-1), by.sin)


class Attention(nn.Module):
    """Rotary attention; which keys are seen is the caller's `attend`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.num_heads + 2 * config.kv_heads
        self.qkv = nn.Linear(config.dim, heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x: Float[Tensor, "b n d"], *, by: Rotation, attend: Attend
    ) -> Float[Tensor, "b n d"]:
        """Mixes positions."""
        heads = rearrange(self.qkv(x), "b n (h e) -> b h n e", e=self.config.head_dim)
        turned, v = heads.split(
            [self.config.num_heads + self.config.kv_heads, self.config.kv_heads], dim=1
        )
        # One rotation of queries and keys together: half the passes over memory.
        q, k = rotate(turned, by).split([self.config.num_heads, self.config.kv_heads], dim=1)
        mixed = attend(q, k, v)
        return self.out(rearrange(mixed, "b h n e -> b n (h e)"))


class SwiGLU(nn.Module):
    """Gated feed-forward: gate and up in one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.out = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Source: Shazeer 2020, arXiv:2002.05202."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy, each added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = SwiGLU(config)

    def forward(
        self, x: Float[Tensor, "b n d"], *, by: Rotation, attend: Attend
    ) -> Float[Tensor, "b n d"]:
        """One layer of the residual stream."""
        x = x + self.attention(self.attention_norm(x), by=by, attend=attend)
        return x + self.ffn(self.ffn_norm(x))
