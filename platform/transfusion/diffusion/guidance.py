"""Classifier-free guidance."""

from jaxtyping import Float
from torch import Tensor


def guide(
    conditional: Float[Tensor, "*shape"],
    unconditional: Float[Tensor, "*shape"],
    scale: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Moves away from the unconditional prediction: 1 leaves the conditional one, 0 the unconditional.

    Source: Ho & Salimans 2022, arXiv:2207.12598; scale here is 1 + w there.
    """
    return unconditional + scale * (conditional - unconditional)


def guide_edit(
    full: Float[Tensor, "*shape"],
    of_image: Float[Tensor, "*shape"],
    of_nothing: Float[Tensor, "*shape"],
    *,
    text_scale: float | Tensor,
    image_scale: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Moves towards the image that is edited, and from there towards what the instruction says.

    Source: Brooks et al. 2022, InstructPix2Pix, arXiv:2211.09800, equation 3.

    Args:
        full: Of image and instruction.
        of_image: Of the image alone.
    """
    return of_nothing + image_scale * (of_image - of_nothing) + text_scale * (full - of_image)
