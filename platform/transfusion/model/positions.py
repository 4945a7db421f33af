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
    grid: tuple[int, int], dim: int, *, device: torch.device
) -> Float[Tensor, "p {dim}"]:
    """Sines and cosines of row and column, a half of the width each; what is left over is zero.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, appendix D.4, after Vaswani et al. 2017.
    """
    quarter = dim // 4
    exponent = torch.arange(quarter, device=device, dtype=torch.float32) / quarter
    frequencies = torch.exp(-math.log(LONGEST) * exponent)

    def waves(length: int) -> Float[Tensor, "l e"]:
        angles = rearrange(torch.arange(length, device=device).float(), "l -> l 1") * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    rows = repeat(waves(grid[0]), "y e -> (y x) e", x=grid[1])
    columns = repeat(waves(grid[1]), "x e -> (y x) e", y=grid[0])
    both = torch.cat([rows, columns], dim=-1)
    return torch.nn.functional.pad(both, (0, dim - both.shape[1]))
