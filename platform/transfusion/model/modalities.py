"""Weights of their own for text and for patches: every row goes through those of its modality.

Mixture-of-Transformers (Liang et al. 2024, arXiv:2411.04996) and LMFusion (Shi et al. 2024, arXiv:2412.15188):
projections, feed-forward and norms are a modality's, attention is over all. BOI and EOI go with text.
Axes: b = sequences, n = positions, d = width, t = rows of text, i = rows of images.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

OfRows = Callable[[Tensor], Tensor]
"""(rows d) -> (rows k), each row alone."""


class Rows(NamedTuple):
    """Index into the flattened (b n) of the positions of each modality; b * n, one past the end, is no row."""

    text: Int[Tensor, " t"] | None
    """None for all: the rows that images have are then computed by text's weights for nothing."""

    image: Int[Tensor, " i"]

    @classmethod
    def of(cls, image: Int[Tensor, " i"], *, num_rows: int, static: bool) -> "Rows":
        """The rows that are not in `image` are text.

        Args:
            static: Text's weights see every position, whatever the batch: shapes stay, for a compiler.
        """
        if static:
            return cls(text=None, image=image)
        numbers = torch.arange(num_rows, device=image.device)
        is_image = torch.zeros(num_rows + 1, dtype=torch.bool, device=image.device)
        is_image = is_image.index_fill(0, image, True)[:-1]
        return cls(text=numbers[~is_image], image=image)


def each_by_its_own(
    text: OfRows, image: OfRows | None, x: Float[Tensor, "b n d"], rows: Rows | None
) -> Float[Tensor, "b n k"]:
    """Every position by the function of its modality; all by text's where images have none."""
    if image is None or rows is None:
        return text(x)
    flat = rearrange(x, "b n d -> (b n) d")
    # One row past the end is read and written by the rows that are none.
    padded = F.pad(flat, (0, 0, 0, 1))
    # Not `padded[...]`, whose gradient CUDA adds up row by row where an index stands often, as that past the end.
    of_image = image(padded.index_select(0, rows.image))
    if rows.text is None:
        both = F.pad(text(flat), (0, 0, 0, 1))
    else:
        of_text = text(padded.index_select(0, rows.text))
        both = of_text.new_zeros(len(padded), of_text.shape[1]).index_copy(0, rows.text, of_text)
    both = both.index_copy(0, rows.image, of_image)
    return rearrange(both[:-1], "(b n) k -> b n k", b=x.shape[0])
