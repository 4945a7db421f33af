"""The language model's head: scores of every token."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ALIGNED = 64
"""Logits whose rows begin at odd addresses, as of 32,005 tokens, take kernels of a fraction of the speed."""


class Head(nn.Linear):
    """`nn.Linear` without a bias. Where a GPU trains, its product is padded to a multiple of `ALIGNED` tokens."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__(dim, vocab_size, bias=False)

    def forward(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """Logits of each row."""
        # Few rows read the weights and little else: they would be copied for nothing.
        if hidden.is_cuda and torch.is_grad_enabled():
            return padded_product(hidden, self.weight, multiple_of=ALIGNED)
        return super().forward(hidden)


def padded_product(
    hidden: Float[Tensor, "*rows d"], weight: Float[Tensor, "v d"], *, multiple_of: int
) -> Float[Tensor, "*rows v"]:
    """`hidden @ weight.T` by way of a weight with rows of zeros; their results are left out."""
    missing = -len(weight) % multiple_of
    return F.linear(hidden, F.pad(weight, (0, 0, 0, missing)))[..., : len(weight)]
