"""The Llama block: RMSNorm, rotary attention, SwiGLU; and what the papers vary of it.

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
from transfusion.model.modalities import Rows, each_by_its_own
from transfusion.model.norm import RMSNorm


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
    half = x.shape[-1] // 2
    if torch.is_grad_enabled():
        return torch.addcmul(x * by.cos, x.roll(half, dims=-1), by.sin)
    # The same without a rolled copy: in place, which a derivative would have to undo.
    turned = x * by.cos
    (first, second), (of_first, of_second) = x.chunk(2, dim=-1), by.sin.chunk(2, dim=-1)
    to_first, to_second = turned.chunk(2, dim=-1)
    to_first.addcmul_(second, of_first)
    to_second.addcmul_(first, of_second)
    return turned


class Attention(nn.Module):
    """The weights around attention; which keys are seen is not theirs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.num_heads + 2 * config.kv_heads
        self.qkv = nn.Linear(config.dim, heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        normed = config.qk_norm == "rms"
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if normed else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if normed else None

    def heads(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows all"]:
        """Queries, keys and values, head after head."""
        every = self.qkv(x)
        if self.q_norm is None or self.k_norm is None:
            return every
        config = self.config
        # Before the rotation, which leaves norms as they are.
        q, k, v = rearrange(every, "... (h e) -> ... h e", e=config.head_dim).split(
            [config.num_heads, config.kv_heads, config.kv_heads], dim=-2
        )
        normed = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=-2)
        return rearrange(normed, "... h e -> ... (h e)")


class SwiGLU(nn.Module):
    """Gated feed-forward: gate and up in one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.out = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Source: Shazeer 2020, arXiv:2002.05202."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return self.out(F.silu(gate) * up)
        return self.out(F.silu(gate).mul_(up))


class Layer(nn.Module):
    """The weights of a block: all of them, or those of one modality. What is here treats every row alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = SwiGLU(config)

    def heads(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows all"]:
        """Queries, keys and values of the stream."""
        return self.attention.heads(self.attention_norm(x) if self.config.norm == "pre" else x)

    def mixed(self, values: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What attention adds to the stream, of the values that were seen."""
        added = self.attention.out(values)
        return added if self.config.norm == "pre" else self.attention_norm(added)

    def fed(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What the feed-forward adds to the stream."""
        return (
            self.ffn(self.ffn_norm(x)) if self.config.norm == "pre" else self.ffn_norm(self.ffn(x))
        )


class Block(Layer):
    """Attention and feed-forward, each added to the stream. Patches may have weights of their own (`image`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.image = Layer(config) if config.weights == "by_modality" else None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        by: Rotation,
        attend: Attend,
        rows: Rows | None = None,
    ) -> Float[Tensor, "b n d"]:
        """One layer of the residual stream; attention is over all positions, whosever weights they have.

        Args:
            rows: Which positions are whose, where patches have weights of their own; all are text's without.
        """
        config, image = self.config, self.image
        every = each_by_its_own(self.heads, image and image.heads, x, rows)
        # b h n e; by hand, for a step of one token would feel einops.
        heads = every.view(*every.shape[:2], -1, config.head_dim).transpose(1, 2)
        turned, v = heads.split_with_sizes(
            [config.num_heads + config.kv_heads, config.kv_heads], dim=1
        )
        # One rotation of queries and keys together: half the passes over memory.
        q, k = rotate(turned, by).split_with_sizes([config.num_heads, config.kv_heads], dim=1)
        seen = attend(q, k, v).transpose(1, 2).flatten(2)
        x = x + each_by_its_own(self.mixed, image and image.mixed, seen, rows)
        return x + each_by_its_own(self.fed, image and image.fed, x, rows)
