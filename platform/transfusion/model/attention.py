"""Attention where query q sees the keys lo[q] <= k < hi[q]: one description, a backend for each device.

A backend is planned once a batch and shared by all layers. On CPU queries go in blocks, and each block
reads only the slice of keys that any of its queries sees. On CUDA FlexAttention compiles the interval.
Neither holds an N x N matrix.
Axes: b = sequences, n = positions, q = queries, k = keys, h = query heads, g = key and value heads,
e = head width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q: b h n e, k: b g n e, v: b g n e) -> b h n e."""

BackendName = Literal["blocks", "flex"]


def plan_attention(
    lo: Int[Tensor, "b n"],
    hi: Int[Tensor, "b n"],
    *,
    query_block: int,
    backend: BackendName | None = None,
) -> Attend:
    """Attention by key ranges; the backend of the device when none is named.

    Args:
        query_block: Queries that share a slice of keys, for the backend that works in blocks.
    """
    chosen: BackendName = backend or ("flex" if lo.is_cuda else "blocks")
    return BACKENDS[chosen](lo, hi, query_block)


def sees(
    lo: Int[Tensor, "b q"], hi: Int[Tensor, "b q"], *, first: int, last: int
) -> Bool[Tensor, "b 1 q k"]:
    """Which of the keys `first` to `last` (exclusive) each query sees."""
    keys = torch.arange(first, last, device=lo.device)
    low, high = rearrange(lo, "b q -> b 1 q 1"), rearrange(hi, "b q -> b 1 q 1")
    return (keys >= low) & (keys < high)


def masked_attention(
    q: Float[Tensor, "b h q e"],
    k: Float[Tensor, "b g k e"],
    v: Float[Tensor, "b g k e"],
    mask: Bool[Tensor, "b 1 q k"] | Float[Tensor, "b 1 q k"],
) -> Float[Tensor, "b h q e"]:
    """Attention of some queries to a slice of keys, under a mask of just that size."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    )


@dataclass(frozen=True, slots=True)
class _Block:
    queries: slice
    keys: slice
    mask: Bool[Tensor, "b 1 q k"]


def _plan_blocks(lo: Tensor, hi: Tensor, query_block: int) -> Attend:
    num_positions = lo.shape[1]
    blocks = []
    for start in range(0, num_positions, query_block):
        queries = slice(start, min(start + query_block, num_positions))
        low, high = lo[:, queries], hi[:, queries]
        first, last = int(low.min()), int(high.max())
        mask = sees(low, high, first=first, last=last)
        blocks.append(_Block(queries, slice(first, last), mask))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs = [
            masked_attention(
                q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys], block.mask
            )
            for block in blocks
        ]
        return torch.cat(outputs, dim=2)

    return attend


@lru_cache(maxsize=1)
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Shapes are static: with dynamic shapes the kernels get several times slower.
    return (
        torch.compile(create_block_mask, dynamic=False),
        torch.compile(flex_attention, dynamic=False),
    )


def _plan_flex(lo: Tensor, hi: Tensor, query_block: int) -> Attend:  # noqa: ARG001
    create_block_mask, flex_attention = _compiled_flex()
    num_sequences, num_positions = lo.shape

    def visible(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= lo[b, q]) & (k < hi[b, q])

    block_mask = create_block_mask(
        visible, num_sequences, None, num_positions, num_positions, device=lo.device
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])

    return attend


BACKENDS: Mapping[BackendName, Callable[[Tensor, Tensor, int], Attend]] = MappingProxyType(
    {"blocks": _plan_blocks, "flex": _plan_flex}
)
