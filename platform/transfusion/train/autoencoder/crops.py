"""Image crops in memory, and which of them a lane sees at a step: arithmetic, so that resuming is a number.

Axes: b = images, h w = pixels, c i j = latent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from transfusion.autoencoder.autoencoder import to_signal
from transfusion.train.autoencoder.config import TrainAutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Images of one size, sorted by key, so that shards and their order do not show."""

    keys: list[str]
    images: UInt8[np.ndarray, "n h w 3"]


class CropBatches:
    """Batches of the images that are trained on."""

    def __init__(
        self,
        config: TrainAutoencoderConfig,
        images: UInt8[Tensor, "n h w 3"],
        *,
        latent_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self._config, self._images, self._device = config, images, device
        self._latent_shape = latent_shape
        self._orders: dict[int, np.ndarray] = {}

    def micro_batch(
        self, step: int, lane: int
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c i j"]]:
        """Images of a lane's part of a batch, and the noise that picks their latents."""
        rows = self.rows(step, lane)
        # Counter-based, on CPU: neither rank nor device nor restart changes what is drawn.
        draw = np.random.Generator(
            np.random.Philox(
                key=np.array([self._config.seed, 1], np.uint64), counter=[step, lane, 0, 0]
            )
        )
        noise = draw.standard_normal((len(rows), *self._latent_shape), np.float32)
        images: UInt8[Tensor, "b h w 3"] = self._images[torch.from_numpy(rows)].to(self._device)
        return to_signal(images), torch.from_numpy(noise).to(self._device)

    def rows(self, step: int, lane: int) -> np.ndarray:
        """Rows of one lane's part of a batch: every epoch is another permutation."""
        size = self._config.batch_size // self._config.lanes
        first = step * self._config.batch_size + lane * size
        positions = range(first, first + size)
        return np.array(
            [self._order(at // len(self._images))[at % len(self._images)] for at in positions]
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            key = np.array([self._config.seed, 2], np.uint64)
            draw = np.random.Generator(np.random.Philox(key=key, counter=[epoch, 0, 0, 0]))
            # A batch may span two epochs; none before them is asked for again.
            self._orders = {
                **{old: order for old, order in self._orders.items() if old == epoch - 1},
                epoch: draw.permutation(len(self._images)),
            }
        return self._orders[epoch]
