"""Measuring an autoencoder on images: the statistics of its latents, and its quality.

In plain fp32 and fixed chunks whatever trained it: these are constants that others divide by.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from transfusion.autoencoder.autoencoder import Autoencoder, psnr_db, to_signal
from transfusion.autoencoder.network import posterior
from transfusion.autoencoder.statistics import LatentStatistics, measure

CHUNK_IMAGES = 32
"""Images at a time: fixed, because another number may flip last bits."""


@torch.no_grad()
def calibrate(network: Any, images: UInt8[Tensor, "b h w 3"]) -> LatentStatistics:
    """Statistics of one sampled latent of each image, with noise that depends on its place alone."""
    draw = np.random.Generator(np.random.Philox(key=0))
    latents = []
    for chunk in images.split(CHUNK_IMAGES):
        found = posterior(network.eval(), to_signal(chunk))
        noise = torch.from_numpy(draw.standard_normal(tuple(found.mean.shape), np.float32))
        latents.append(found.sample(noise.to(found.mean.device)).cpu())
    return measure(torch.cat(latents))


def mean_psnr_db(autoencoder: Autoencoder, images: UInt8[Tensor, "b h w 3"]) -> float:
    """Quality of reconstructions through the posterior's mean: the ceiling of what is made of latents."""
    each = [
        psnr_db(autoencoder.reconstruct(chunk).cpu(), chunk.cpu())
        for chunk in images.split(CHUNK_IMAGES)
    ]
    return round(torch.cat(each).double().mean().item(), 4)
