"""What passes between the way into the transformer and the way out of it.

Axes: m = images, p = patches (row by row), d = width of the transformer.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class EncodedImages(NamedTuple):
    """Noisy latents as patch vectors, and what goes past the transformer to the way out."""

    patches: Float[Tensor, "m p d"]
    """The time token first, where the model has one: it is a patch to all but the adapter."""

    skips: tuple[Tensor, ...]
    """Of this denoising step only: never to be cached."""

    grid: tuple[int, int]
    """Patches down and across."""

    def for_branches(self, num_branches: int) -> "EncodedImages":
        """The same images once for each branch of guidance, branch after branch: (branch m)."""
        return EncodedImages(
            patches=self.patches.repeat(num_branches, 1, 1),
            skips=tuple(skip.repeat(num_branches, 1, 1, 1) for skip in self.skips),
            grid=self.grid,
        )
