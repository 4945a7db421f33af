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
from transfusion.sequence.document import Sight
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
    is_condition: bool = False
    is_copy: bool = False
    """It is the clean copy of one with the same counters, its twin."""
    has_conditions: bool = False
    """Images of its document are conditions for it."""


class Drops(NamedTuple):
    """How often an image loses sight of what stands before it, for guidance."""

    caption: float = 0.0
    """Of images that have no conditions."""
    instruction: float = 0.0
    """An image that has conditions sees these alone."""
    image: float = 0.0
    """It sees the instruction alone."""
    both: float = 0.0

    def sight(self, image: WantedImage, chance: float) -> Sight:
        """What an image sees, by a number in [0, 1)."""
        if not image.has_conditions:
            return "nothing" if image.sees_text and chance < self.caption else "all"
        if chance < self.both:
            return "nothing"
        if chance < self.both + self.instruction:
            return "images"
        return "text" if chance < self.both + self.instruction + self.image else "all"


def draw_images(
    wanted: Sequence[WantedImage],
    *,
    count: int,
    latent_shape: tuple[int, int, int],
    seed: int,
    objective: ObjectiveConfig,
    drops: Drops,
) -> ImageSlots:
    """Samples of the posteriors, noise, timesteps and what the images see, in `count` slots.

    Of a condition nothing is drawn: it is the posterior's mean, at the first timestep, as when an edit is sampled.
    A clean copy is its twin's sample at the first timestep, without noise.
    """
    slots = ImageSlots.empty(count, latent_shape, used=len(wanted))
    draws = Draws(seed, _IMAGE)
    part = torch.empty(latent_shape, dtype=torch.float32)
    for slot, image in enumerate(wanted):
        drawn = draws.at(*image.counters)
        if image.is_condition:
            slots.clean[slot] = True
            slots.latents[slot], slots.noise[slot] = 0.0, 0.0
            _scale(slots.latents[slot], image, part)
            continue
        timestep, chance = drawn.random(2)
        limit = objective.noise_limit if image.is_seen else objective.num_timesteps
        slots.timesteps[slot] = timestep_at(timestep, objective, limit=limit)
        slots.sees[slot] = drops.sight(image, chance)
        latent = slots.latents[slot]
        # One image at a time and in place: it stays in the processor's cache.
        drawn.standard_normal(out=latent, dtype=np.float32)
        if image.is_copy:
            slots.clean[slot] = True
            slots.noise[slot], slots.timesteps[slot] = 0.0, 0
        else:
            drawn.standard_normal(out=slots.noise[slot], dtype=np.float32)
        # Torch widens halves five times as fast as numpy does.
        latent *= part.copy_(image.group.std[image.row]).numpy()
        _scale(latent, image, part)
    return slots


def _scale(
    latent: Float32[np.ndarray, "c h w"], image: WantedImage, part: Float32[Tensor, "c h w"]
) -> None:
    """Adds the mean, then makes the variance that of all images."""
    latent += part.copy_(image.group.mean[image.row]).numpy()
    latent -= image.scaling.shift
    latent /= image.scaling.scale
