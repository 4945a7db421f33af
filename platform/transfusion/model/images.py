"""What passes between the way into the transformer and the way out of it.

Axes: m = images, p = patches (row by row), d = width of the transformer.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class EncodedImages(NamedTuple):
    """Noisy latents as patch vectors, and what goes past the transformer to the way out."""

    patches: Float[Tensor, "m p d"]
    """The time token first, where the model has one: it is a patch to all but the adapter."""

    skips: tuple[Tensor, ...]
    """Of this denoising step only: never to be cached."""

    grid: tuple[int, int]
    """Patches down and across."""

    def of(self, images: Int[Tensor, " k"]) -> "EncodedImages":
        """Some of the images, in the order given; one may be named for each branch of guidance."""
        return EncodedImages(
            patches=self.patches[images],
            skips=tuple(skip[images] for skip in self.skips),
            grid=self.grid,
        )
