"""Vector quantization: a latent position as the nearest of a codebook's vectors, and so as one number.

Axes: b = images, c i j = latent, k = codes, n = positions.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

MAX_DISTANCES = 2**24
"""Computed at a time: 64 MiB of them, however large the codebook and the images."""


def is_quantized(network: Any) -> bool:
    """Whether a network of diffusers has a codebook."""
    return hasattr(network, "quantize")


def codebook(network: Any) -> Float[Tensor, "k c"]:
    """The vectors of a network that has them."""
    weight: Tensor = network.quantize.embedding.weight
    return weight


@torch.no_grad()
def nearest_codes(
    latents: Float[Tensor, "b c i j"], codes: Float[Tensor, "k c"]
) -> Int[Tensor, "b i j"]:
    """Number of the nearest code of each position; of equally near ones the first.

    Distances are taken from differences, not from products: these may be computed in bf16, and would choose
    other codes than fp32 does.
    """
    flat = rearrange(latents.detach().float(), "b c i j -> (b i j) c")
    table = codes.detach().float()
    distances = by_channel if table.is_cuda else _cdist
    found = [
        distances(part, table).argmin(dim=1)
        for part in flat.split(max(1, MAX_DISTANCES // len(table)))
    ]
    b, _, i, j = latents.shape
    return torch.cat(found).view(b, i, j)


def _cdist(part: Float[Tensor, "n c"], table: Float[Tensor, "k c"]) -> Float[Tensor, "n k"]:
    return torch.cdist(part, table, compute_mode="donot_use_mm_for_euclid_dist")


def by_channel(part: Float[Tensor, "n c"], table: Float[Tensor, "k c"]) -> Float[Tensor, "n k"]:
    """Squares of `_cdist`'s, for CUDA, where that starts a block of threads to add up the few channels of each."""
    found = part.new_zeros(len(part), len(table))
    for channel in range(part.shape[1]):
        found += (part[:, channel, None] - table[None, :, channel]).square_()
    return found


def vectors_of(
    indices: Int[Tensor, "b i j"], codes: Float[Tensor, "k c"]
) -> Float[Tensor, "b c i j"]:
    """The codes' vectors as a latent; gradients flow to the codebook."""
    return rearrange(torch.nn.functional.embedding(indices, codes), "b i j c -> b c i j")


def perplexity(counts: Float[Tensor, " k"]) -> float:
    """How many codes, used equally often, would be as uncertain: 1 to the size of the codebook."""
    share = counts.double() / counts.double().sum().clamp(min=1.0)
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
