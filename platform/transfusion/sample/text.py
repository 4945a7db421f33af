"""One step of text: from scores to the next token of each row.

Axes: b = rows, v = vocabulary.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

COLDEST = 1e-5
"""Below it scores that are divided leave the range of fp32, and the likeliest token would be drawn anyway."""


def next_tokens(
    logits: Float[Tensor, "b v"],
    *,
    allowed: Bool[Tensor, "b v"],
    temperature: Float[Tensor, " b"],
    top_p: Float[Tensor, " b"],
    top_k: Int[Tensor, " b"],
    uniform: Float[Tensor, " b"],
) -> Int[Tensor, " b"]:
    """The next token of each row.

    Args:
        allowed: Tokens that may come next; at least one a row.
        temperature: 0, and what is below `COLDEST`, takes the likeliest token.
        top_p: The likeliest tokens that together reach this probability stay.
        top_k: This many likeliest tokens stay; 0 for all.
        uniform: A number in [0, 1) a row, that decides the draw: so a row's draw does not depend on the
            other rows of the batch.
    """
    greedy = temperature < COLDEST
    scores = logits.float().masked_fill(~allowed, -torch.inf)
    heat = rearrange(torch.where(greedy, 1.0, temperature), "b -> b 1")
    ordered, order = (scores / heat).sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    rank = rearrange(torch.arange(logits.shape[-1], device=logits.device), "v -> 1 v")
    before = probability.cumsum(dim=-1) - probability
    few = rearrange(torch.where(top_k == 0, logits.shape[-1], top_k), "b -> b 1")
    # The likeliest token always stays, also where fp32 takes a tiny `top_p` for 0.
    kept = probability * ((rank == 0) | (rank < few) & (before < rearrange(top_p, "b -> b 1")))
    cumulative = kept.cumsum(dim=-1)
    drawn = (cumulative <= rearrange(uniform, "b -> b 1") * cumulative[:, -1:]).sum(dim=-1)
    # Rounding may carry the draw past the last token that was kept.
    last = (kept > 0).sum(dim=-1) - 1
    chosen = torch.where(greedy, 0, torch.minimum(drawn, last))
    return rearrange(order.gather(1, rearrange(chosen, "b -> b 1")), "b 1 -> b")
