"""Where a patch stands in its image, beyond its place in the sequence.

Axes: y x = the grid of patches, d = width.
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

LONGEST = 100.0
"""Base of the wavelengths, in patches: grids are some tens of patches wide."""


def sinusoid_2d(
    grid: tuple[int, int], dim: int, *, device: torch.device, learned_side: int | None = None
) -> Float[Tensor, "p {dim}"]:
    """Sines and cosines of row and column, a half of the width each; what is left over is zero.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, appendix D.4, after Vaswani et al. 2017.

    Args:
        learned_side: Patches along the longer side of the grid that positions were learned on: rows and columns
            are spread over it linearly (Chen et al. 2023, arXiv:2306.15595), in the shape of this grid.
    """
    longer = max(grid)
    learned_side = learned_side or longer
    quarter = dim // 4
    exponent = torch.arange(quarter, device=device, dtype=torch.float32) / quarter
    frequencies = torch.exp(-math.log(LONGEST) * exponent)

    def waves(length: int) -> Float[Tensor, "l e"]:
        # Divided last: a place that both grids have is then the same number, not nearly so.
        places = torch.arange(length, device=device).float() * learned_side / longer
        angles = rearrange(places, "l -> l 1") * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    rows = repeat(waves(grid[0]), "y e -> (y x) e", x=grid[1])
    columns = repeat(waves(grid[1]), "x e -> (y x) e", y=grid[0])
    both = torch.cat([rows, columns], dim=-1)
    return torch.nn.functional.pad(both, (0, dim - both.shape[1]))
