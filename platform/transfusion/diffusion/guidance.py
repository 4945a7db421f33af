"""Classifier-free guidance."""

from jaxtyping import Float
from torch import Tensor


def guide(
    conditional: Float[Tensor, "*shape"],
    unconditional: Float[Tensor, "*shape"],
    scale: float,
) -> Float[Tensor, "*shape"]:
    """Moves away from the unconditional prediction: 1 leaves the conditional one, 0 the unconditional.

    Source: Ho & Salimans 2022, arXiv:2207.12598; scale here is 1 + w there.
    """
    return unconditional + scale * (conditional - unconditional)
