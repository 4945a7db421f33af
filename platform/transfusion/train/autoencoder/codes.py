"""The codebook in training: how much of it is used, and new places for codes that are not.

Axes: b = images, c i j = latent, k = codes, n = positions.
"""

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from transfusion.autoencoder.quantizer import codebook, perplexity
from transfusion.train.autoencoder.forward import QuantizedReconstruction
from transfusion.train.parallel import local

SETTLED_FROM = 0.8
"""Of the run: from there on no code is moved, so that the averaged weights forget what codes were before."""

_RESTART = 3
"""Purpose of the draws; apart from those of a batch."""


def count(indices: Int[Tensor, "b i j"], size: int) -> Float[Tensor, " k"]:
    """How often each code was taken."""
    return torch.bincount(indices.flatten(), minlength=size).double()


def usage(counts: Float[Tensor, " k"]) -> dict[str, float]:
    """Share of the codes that were taken at all, and the perplexity of their use."""
    return {
        "codes_used": float((counts > 0).double().mean()),
        "code_perplexity": perplexity(counts),
    }


def is_restart(step: int, *, every_steps: int, total_steps: int) -> bool:
    """Whether dead codes are moved before this step."""
    return bool(
        every_steps and step and step % every_steps == 0 and step < SETTLED_FROM * total_steps
    )


@torch.no_grad()
def restart_dead_codes(
    model: QuantizedReconstruction,
    latents: Float[Tensor, "b c i j"],
    *,
    seed: int,
    step: int,
) -> int:
    """Moves codes that were not taken since the last time to positions of `latents`; returns how many.

    Every rank must call it with the same latents. The draw depends on seed and step alone.
    """
    dead = (model.usage == 0).nonzero()[:, 0]
    model.usage.zero_()
    if not len(dead):
        return 0
    weight = codebook(model.network)
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()
    places = rearrange(latents, "b c i j -> (b i j) c")
    draw = np.random.Generator(
        np.random.Philox(key=np.array([seed, _RESTART], np.uint64), counter=[step, 0, 0, 0])
    )
    chosen = draw.choice(len(places), len(dead), replace=len(dead) > len(places))
    whole[dead] = places[torch.from_numpy(chosen).to(places.device)].to(whole.dtype)
    if isinstance(weight, DTensor):
        # Latents may differ between ranks in last bits: those of rank 0 count.
        whole = distribute_tensor(whole, weight.device_mesh, weight.placements)
    local(weight).copy_(local(whole))
    return len(dead)


def all_counts(counts: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Sums over ranks, in place."""
    dist.all_reduce(counts)
    return counts
