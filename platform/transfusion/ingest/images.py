"""Images of a batch: their latents, and what is drawn for each of them.

A draw follows from the seed and from what the image is, so it does not matter with which others it is drawn.
Axes: k = rows of a row group, m = image slots, c h w = latent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float32
from torch import Tensor

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.times import timestep_at
from transfusion.sequence.batch import ImageSlots
from transfusion.sequence.draws import Draws

_IMAGE = 16
"""Purpose of the draws of an image; apart from those of the plan."""


class LatentGroup(NamedTuple):
    """Posteriors that were read together."""

    mean: Float16[Tensor, "k c h w"]
    std: Float16[Tensor, "k c h w"]


class Scaling(NamedTuple):
    """Shift and scale of the autoencoder that made the latents, spread to their shape: twice as fast to use."""

    shift: Float32[np.ndarray, "c h w"]
    scale: Float32[np.ndarray, "c h w"]


class WantedImage(NamedTuple):
    """An image of a batch that is being put together."""

    group: LatentGroup
    row: int
    """Its place in the group."""
    scaling: Scaling
    counters: tuple[int, int, int]
    """Epoch, document, image: what its draws depend on, beside the seed."""
    sees_text: bool
    is_seen: bool
    """By text that follows."""


def draw_images(
    wanted: Sequence[WantedImage],
    *,
    count: int,
    latent_shape: tuple[int, int, int],
    seed: int,
    objective: ObjectiveConfig,
    caption_drop: float,
) -> ImageSlots:
    """Samples of the posteriors, noise, timesteps and dropped captions, in `count` slots."""
    slots = ImageSlots.empty(count, latent_shape, used=len(wanted))
    draws = Draws(seed, _IMAGE)
    part = torch.empty(latent_shape, dtype=torch.float32)
    for slot, image in enumerate(wanted):
        drawn = draws.at(*image.counters)
        timestep, chance = drawn.random(2)
        limit = objective.noise_limit if image.is_seen else objective.num_timesteps
        slots.timesteps[slot] = timestep_at(timestep, objective, limit=limit)
        slots.drop_caption[slot] = image.sees_text and chance < caption_drop
        latent = slots.latents[slot]
        # One image at a time and in place: it stays in the processor's cache.
        drawn.standard_normal(out=latent, dtype=np.float32)
        drawn.standard_normal(out=slots.noise[slot], dtype=np.float32)
        # Torch widens halves five times as fast as numpy does.
        latent *= part.copy_(image.group.std[image.row]).numpy()
        latent += part.copy_(image.group.mean[image.row]).numpy()
        latent -= image.scaling.shift
        latent /= image.scaling.scale
    return slots
