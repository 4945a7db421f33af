"""Weights of their own for text and for patches: every row goes through those of its modality.

Mixture-of-Transformers (Liang et al. 2024, arXiv:2411.04996) and LMFusion (Shi et al. 2024, arXiv:2412.15188):
projections, feed-forward and norms are a modality's, attention is over all. BOI and EOI go with text.
Axes: b = sequences, n = positions, d = width, t = rows of text, i = rows of images.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

OfRows = Callable[[Tensor], Tensor]
"""(rows d) -> (rows k), each row alone."""


class Rows(NamedTuple):
    """Index into the flattened (b n) of the positions of each modality; b * n, one past the end, is no row."""

    text: Int[Tensor, " t"]
    image: Int[Tensor, " i"]

    @classmethod
    def of(cls, image: Int[Tensor, " i"], *, num_rows: int, static: bool) -> "Rows":
        """The rows that are not in `image` are text.

        Args:
            static: As many rows of text as there are positions, whatever the batch: shapes stay, for a compiler,
                and the rows that images have are computed by text's weights for nothing.
        """
        numbers = torch.arange(num_rows, device=image.device)
        is_image = torch.zeros(num_rows + 1, dtype=torch.bool, device=image.device)
        is_image = is_image.index_fill(0, image, True)[:-1]
        text = torch.where(is_image, num_rows, numbers) if static else numbers[~is_image]
        return cls(text=text, image=image)


def each_by_its_own(
    text: OfRows, image: OfRows | None, x: Float[Tensor, "b n d"], rows: Rows | None
) -> Float[Tensor, "b n k"]:
    """Every position by the function of its modality; all by text's where images have none."""
    if image is None or rows is None:
        return text(x)
    flat = rearrange(x, "b n d -> (b n) d")
    # One row past the end is read and written by the rows that are none.
    flat = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
    of_text, of_image = text(flat[rows.text]), image(flat[rows.image])
    both = of_text.new_zeros(len(flat), of_text.shape[1])
    both = both.index_copy(0, rows.text, of_text).index_copy(0, rows.image, of_image)
    return rearrange(both[:-1], "(b n) k -> b n k", b=x.shape[0])
