"""Attention written out: what every backend is compared with."""

import torch
from torch import Tensor


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor | None = None,
    hi: Tensor | None = None,
    lo2: Tensor | None = None,
    hi2: Tensor | None = None,
) -> Tensor:
    """Softmax over all keys; where there are ranges, with everything outside them at minus infinity."""
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if lo is not None:
        keys = torch.arange(k.shape[2])
        visible = (keys >= lo[..., None]) & (keys < hi[..., None])
        if lo2 is not None:
            visible |= (keys >= lo2[..., None]) & (keys < hi2[..., None])
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
