"""The nearest training image of a latent, of however many: one group of images is in memory at a time.

A distance is the root mean square of the difference of two normalised latents: 1 is a standard deviation of all
images.
Axes: q = images that are asked for, c h w = latent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.evaluate.training_images import TrainingImages


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The training image that is nearest to some image."""

    distance: float
    source: str
    key: str
    """Of its document."""
    image_index: int
    latent: Float[Tensor, "c h w"]
    """The mean of its posterior, raw."""

    def record(self) -> dict[str, Any]:
        """Which it is, and how near."""
        return {
            "distance": self.distance,
            "source": self.source,
            "key": self.key,
            "image_index": self.image_index,
        }


def nearest_images(
    latents: Float[Tensor, "q c h w"], images: Iterable[TrainingImages], autoencoder: Autoencoder
) -> tuple[list[Nearest], int]:
    """The nearest training image of each normalised latent, the first of several; and how many were looked at."""
    asked = latents.flatten(1).float()
    best = torch.full((len(asked),), torch.inf, dtype=torch.float64, device=asked.device)
    found: list[Nearest | None] = [None] * len(asked)
    looked_at = 0
    for group in images:
        looked_at += len(group.keys)
        there = autoencoder.normalize(group.means.to(asked.device)).flatten(1)
        place = torch.cdist(asked, there).argmin(dim=1)
        # By products of matrices small distances are inexact: the nearest one's is taken anew.
        squares = (asked - there[place]).double().square()
        distance = squares.mean(dim=1).sqrt()
        nearer = torch.nonzero(distance < best)[:, 0]
        best[nearer] = distance[nearer]
        for i, row in zip(nearer.tolist(), place[nearer].tolist(), strict=True):
            found[i] = Nearest(
                distance=float(best[i]),
                source=group.source,
                key=group.keys[row],
                image_index=group.image_indices[row],
                latent=group.means[row].clone(),
            )
    nearest = [one for one in found if one is not None]
    assert len(nearest) == (len(asked) if looked_at else 0), "a latent is no number"
    return nearest, looked_at
