"""Attention in blocks of queries, each against the one slice of keys that holds all that its queries see.

Slices up to `MAX_EXPLICIT_KEYS` are multiplied out, with the probabilities of each block kept for the
way back: at the sizes of a CPU run this takes a fifth to a half of the time of the fused kernel, whose
backward would dominate the step. Longer slices go to the fused kernel, which keeps nothing.
Axes: b = sequences, h = query heads, g = key and value heads, n = positions, e = head width,
q = queries of a block, k = keys of a block, s = (b h).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MAX_EXPLICIT_KEYS = 512


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Some queries of every sequence, and the keys that any of them sees."""

    queries: slice
    keys: slice
    visible: Bool[Tensor, "b 1 q k"]


Second = tuple[Tensor, Tensor]
"""First key and one past the last, of a second range; both alike where a query has none."""


def query_blocks(
    lo: Int[Tensor, "b n"], hi: Int[Tensor, "b n"], *, size: int, second: Second | None = None
) -> tuple[QueryBlock, ...]:
    """Cuts the queries into blocks of `size`; documents are short, so each block's slice of keys is too.

    Args:
        second: The slice of a block spans both ranges, and what lies between: at most the document.
    """
    blocks = []
    for start in range(0, lo.shape[1], size):
        queries = slice(start, min(start + size, lo.shape[1]))
        low, high = lo[:, queries], hi[:, queries]
        also = None
        first, last = int(low.min()), int(high.max())
        if second is not None:
            also = (second[0][:, queries], second[1][:, queries])
            there = also[1] > also[0]
            if there.any():
                first = min(first, int(also[0][there].min()))
                last = max(last, int(also[1][there].max()))
        visible = sees(low, high, first=first, last=last, second=also)
        blocks.append(QueryBlock(queries, slice(first, last), visible))
    return tuple(blocks)


def sees(
    lo: Int[Tensor, "b q"],
    hi: Int[Tensor, "b q"],
    *,
    first: int,
    last: int,
    second: Second | None = None,
) -> Bool[Tensor, "b 1 q k"]:
    """Which of the keys `first` to `last` (exclusive) each query sees."""
    keys = torch.arange(first, last, device=lo.device)
    low, high = rearrange(lo, "b q -> b 1 q 1"), rearrange(hi, "b q -> b 1 q 1")
    visible = (keys >= low) & (keys < high)
    if second is not None:
        visible |= sees(*second, first=first, last=last)
    return visible


class BlockwiseAttention:
    """(q: b h n e, k: b g n e, v: b g n e) -> b h n e, for one batch and all its layers."""

    def __init__(self, blocks: Sequence[QueryBlock]) -> None:
        self.blocks = blocks
        self.explicit = all(block.visible.shape[-1] <= MAX_EXPLICIT_KEYS for block in blocks)
        self._biases: dict[torch.dtype, tuple[Tensor, ...]] = {}

    def __call__(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b g n e"],
        v: Float[Tensor, "b g n e"],
    ) -> Float[Tensor, "b h n e"]:
        """Attention of every query to the keys it sees."""
        if not self.explicit:
            return self._fused(q, k, v)
        share = q.shape[1] // k.shape[1]
        if share > 1:
            k, v = (repeat(x, "b g n e -> b (g share) n e", share=share) for x in (k, v))
        flat = (rearrange(x, "b h n e -> (b h) n e") for x in (q, k, v))
        mixed = _Explicit.apply(*flat, self.blocks, self._bias(q.dtype))
        return rearrange(mixed, "(b h) n e -> b h n e", b=q.shape[0])

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = [
            scaled_dot_product_attention(
                q[:, :, block.queries],
                k[:, :, block.keys],
                v[:, :, block.keys],
                attn_mask=block.visible,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            for block in self.blocks
        ]
        return torch.cat(mixed, dim=2)

    def _bias(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if dtype not in self._biases:
            self._biases[dtype] = tuple(
                torch.zeros(
                    block.visible.shape, dtype=dtype, device=block.visible.device
                ).masked_fill_(~block.visible, float("-inf"))
                for block in self.blocks
            )
        return self._biases[dtype]


class _Explicit(torch.autograd.Function):
    """Softmax attention block by block, and its derivative.

    Written out because autograd through slices would add a full-size gradient for every block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "s n e"],
        k: Float[Tensor, "s n e"],
        v: Float[Tensor, "s n e"],
        blocks: Sequence[QueryBlock],
        biases: Sequence[Tensor],
    ) -> Float[Tensor, "s n e"]:
        scale = q.shape[-1] ** -0.5
        q = q * scale
        mixed = torch.empty_like(v)
        probabilities = []
        for block, bias in zip(blocks, biases, strict=True):
            scores = torch.bmm(q[:, block.queries], k[:, block.keys].mT)
            rearrange(scores, "(b h) q k -> b h q k", b=bias.shape[0]).add_(bias)
            weights = torch.softmax(scores, dim=-1)
            mixed[:, block.queries] = torch.bmm(weights, v[:, block.keys])
            probabilities.append(weights)
        ctx.save_for_backward(q, k, v, mixed, *probabilities)
        ctx.blocks, ctx.scale = blocks, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, *probabilities = ctx.saved_tensors
        grad = grad.contiguous()
        row_sums = (grad * mixed).sum(dim=-1, keepdim=True)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, weights in zip(ctx.blocks, probabilities, strict=True):
            grad_block = grad[:, block.queries]
            grad_v[:, block.keys] += torch.bmm(weights.mT, grad_block)
            grad_scores = torch.bmm(grad_block, v[:, block.keys].mT)
            grad_scores.sub_(row_sums[:, block.queries]).mul_(weights)
            grad_q[:, block.queries] = torch.bmm(grad_scores, k[:, block.keys])
            grad_k[:, block.keys] += torch.bmm(grad_scores.mT, q[:, block.queries])
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None, None
