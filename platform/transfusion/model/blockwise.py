"""Attention in blocks of queries, each against the one slice of keys that holds all that its queries see.

Scores are multiplied out block by block. Where all slices are short the probabilities are kept for the way back:
at the sizes of a CPU run this takes a fifth to a half of the time of the fused kernel, whose backward would
dominate the step. Where one is longer than `MAX_KEPT_KEYS` they are computed again on the way back, from the
logarithm of each query's denominator (Dao et al. 2022, arXiv:2205.14135, algorithm 4): memory then grows with the
positions and not with their pairs, in half the time of the fused kernel.
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

MAX_KEPT_KEYS = 512

LONG_BLOCK = 128
"""Queries of a block where slices are long: products of 32 rows with thousands of keys waste half of the time."""

Second = tuple[Tensor, Tensor]
"""First key and one past the last, of a second range; both alike where a query has none."""


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Some queries of every sequence, and the keys that any of them sees."""

    queries: slice
    keys: slice
    lo: Int[Tensor, "b q"]
    hi: Int[Tensor, "b q"]
    second: Second | None
    partial: tuple[slice, ...]
    """Stretches of all keys within `keys` that not every query sees; the rest needs no mask."""

    def bias(self, stretch: slice, dtype: torch.dtype) -> Float[Tensor, "b 1 q k"]:
        """Added to the scores of a stretch: nothing where a query sees a key, else minus infinity."""
        seen = sees(self.lo, self.hi, first=stretch.start, last=stretch.stop, second=self.second)
        zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return zeros.masked_fill_(~seen, float("-inf"))


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
        # Between these every query sees every key, whatever its second range.
        every = slice(int(low.max()), int(high.min()))
        if second is not None:
            also = (second[0][:, queries], second[1][:, queries])
            there = also[1] > also[0]
            if there.any():
                first = min(first, int(also[0][there].min()))
                last = max(last, int(also[1][there].max()))
        partial = [slice(first, last)]
        if every.start < every.stop:
            partial = [slice(first, every.start), slice(every.stop, last)]
        blocks.append(
            QueryBlock(
                queries=queries,
                keys=slice(first, last),
                lo=low,
                hi=high,
                second=also,
                partial=tuple(part for part in partial if part.start < part.stop),
            )
        )
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

    def __init__(
        self,
        lo: Int[Tensor, "b n"],
        hi: Int[Tensor, "b n"],
        *,
        size: int,
        second: Second | None = None,
    ) -> None:
        """Plans blocks of `size` queries, or of more where slices are long."""
        self.blocks = query_blocks(lo, hi, size=size, second=second)
        self.keeps = all(_length(block) <= MAX_KEPT_KEYS for block in self.blocks)
        if not self.keeps and size < LONG_BLOCK:
            self.blocks = query_blocks(lo, hi, size=LONG_BLOCK, second=second)
        self._biases: dict[torch.dtype, tuple[Biases, ...]] = {}

    def __call__(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b g n e"],
        v: Float[Tensor, "b g n e"],
    ) -> Float[Tensor, "b h n e"]:
        """Attention of every query to the keys it sees."""
        share = q.shape[1] // k.shape[1]
        if share > 1:
            k, v = (repeat(x, "b g n e -> b (g share) n e", share=share) for x in (k, v))
        flat = (rearrange(x, "b h n e -> (b h) n e") for x in (q, k, v))
        biases = self._bias(q.dtype) if self.keeps else None
        mixed = _Blockwise.apply(*flat, self.blocks, biases)
        return rearrange(mixed, "(b h) n e -> b h n e", b=q.shape[0])

    def _bias(self, dtype: torch.dtype) -> "tuple[Biases, ...]":
        """For all layers; long slices make theirs anew, a block at a time."""
        if dtype not in self._biases:
            self._biases[dtype] = tuple(_biases(block, dtype) for block in self.blocks)
        return self._biases[dtype]


Biases = tuple[Tensor, ...]
"""One for each partial stretch of a block."""


def _length(block: QueryBlock) -> int:
    return block.keys.stop - block.keys.start


def _biases(block: QueryBlock, dtype: torch.dtype) -> Biases:
    return tuple(block.bias(stretch, dtype) for stretch in block.partial)


def _scores(
    q: Float[Tensor, "s n e"], k: Float[Tensor, "s n e"], block: QueryBlock, biases: Biases
) -> Float[Tensor, "s q k"]:
    scores = torch.bmm(q[:, block.queries], k[:, block.keys].mT)
    first = block.keys.start
    for stretch, bias in zip(block.partial, biases, strict=True):
        masked = scores[:, :, stretch.start - first : stretch.stop - first]
        rearrange(masked, "(b h) q k -> b h q k", b=bias.shape[0]).add_(bias)
    return scores


class _Blockwise(torch.autograd.Function):
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
        biases: Sequence[Biases] | None,
    ) -> Float[Tensor, "s n e"]:
        """Attention; with biases the probabilities are kept, without them only their denominators are."""
        scale = q.shape[-1] ** -0.5
        q = q * scale
        mixed = torch.empty_like(v)
        precise = torch.promote_types(q.dtype, torch.float32)
        kept: list[Tensor] = []
        denominators = q.new_empty(q.shape[:2], dtype=precise)
        for index, block in enumerate(blocks):
            if biases is not None:
                weights = torch.softmax(_scores(q, k, block, biases[index]), dim=-1)
                mixed[:, block.queries] = torch.bmm(weights, v[:, block.keys])
                kept.append(weights)
                continue
            scores = _scores(q, k, block, _biases(block, q.dtype)).to(precise)
            top = scores.amax(dim=-1, keepdim=True)
            weights = scores.sub_(top).exp_()
            total = weights.sum(dim=-1, keepdim=True)
            values = torch.bmm(weights.to(v.dtype), v[:, block.keys])
            mixed[:, block.queries] = values / total
            denominators[:, block.queries] = (top + total.log()).squeeze(-1)
        ctx.save_for_backward(q, k, v, mixed, denominators, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        q, k, v, mixed, denominators, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        row_sums = (grad * mixed).sum(dim=-1, keepdim=True)
        # Over many blocks half precision would lose what the later ones add.
        sums = q.dtype if kept else denominators.dtype
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=sums), torch.zeros_like(v, dtype=sums)
        for index, block in enumerate(ctx.blocks):
            if kept:
                weights = kept[index]
            else:
                scores = _scores(q, k, block, _biases(block, q.dtype)).to(denominators.dtype)
                scores.sub_(denominators[:, block.queries, None]).exp_()
                weights = scores.to(q.dtype)
            grad_block = grad[:, block.queries]
            grad_v[:, block.keys] += torch.bmm(weights.mT, grad_block)
            grad_scores = torch.bmm(grad_block, v[:, block.keys].mT)
            grad_scores.sub_(row_sums[:, block.queries]).mul_(weights)
            grad_q[:, block.queries] = torch.bmm(grad_scores, k[:, block.keys])
            grad_k[:, block.keys] += torch.bmm(grad_scores.mT, q[:, block.queries])
        return grad_q.mul_(ctx.scale), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None
