"""Attention where query q sees the keys lo[q] <= k < hi[q]: one description, a backend for each device.

Batches of some plans have a second such range, and a query sees what lies in either. A backend is planned
once a batch and shared by all layers. On CPU queries go in blocks, and each block reads only the slice of keys
that any of its queries sees. On CUDA FlexAttention compiles the ranges.
Neither holds an N x N matrix.
Axes: b = sequences, n = positions.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from transfusion.model.blockwise import BlockwiseAttention, Second

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q: b h n e, k: b g n e, v: b g n e) -> b h n e."""

BackendName = Literal["blocks", "flex"]


def plan_attention(
    lo: Int[Tensor, "b n"],
    hi: Int[Tensor, "b n"],
    *,
    query_block: int,
    backend: BackendName | None = None,
    lo2: Int[Tensor, "b n"] | None = None,
    hi2: Int[Tensor, "b n"] | None = None,
) -> Attend:
    """Attention by key ranges; the backend of the device when none is named.

    Args:
        query_block: Queries that share a slice of keys, for the backend that works in blocks.
        lo2: First key of a second range of each query.
        hi2: One past its last; equal to `lo2` where a query has only one range.
    """
    chosen: BackendName = backend or ("flex" if lo.is_cuda else "blocks")
    second = None if lo2 is None or hi2 is None else (lo2, hi2)
    return BACKENDS[chosen](lo, hi, second, query_block)


def _plan_blocks(lo: Tensor, hi: Tensor, second: Second | None, query_block: int) -> Attend:
    return BlockwiseAttention(lo, hi, size=query_block, second=second)


@lru_cache(maxsize=1)
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Shapes are static: with dynamic shapes the kernels get several times slower.
    return (
        torch.compile(create_block_mask, dynamic=False),
        torch.compile(flex_attention, dynamic=False),
    )


def _plan_flex(
    lo: Tensor,
    hi: Tensor,
    second: Second | None,
    query_block: int,  # noqa: ARG001
) -> Attend:
    create_block_mask, flex_attention = _compiled_flex()
    num_sequences, num_positions = lo.shape
    lo2, hi2 = second or (lo, lo)
    block_mask = create_block_mask(
        (lambda b, _h, q, k: (k >= lo[b, q]) & (k < hi[b, q]))
        if second is None
        else lambda b, _h, q, k: (
            ((k >= lo[b, q]) & (k < hi[b, q])) | ((k >= lo2[b, q]) & (k < hi2[b, q]))
        ),
        num_sequences,
        None,
        num_positions,
        num_positions,
        device=lo.device,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])

    return attend


BACKENDS: Mapping[BackendName, Callable[[Tensor, Tensor, Second | None, int], Attend]] = (
    MappingProxyType({"blocks": _plan_blocks, "flex": _plan_flex})
)
