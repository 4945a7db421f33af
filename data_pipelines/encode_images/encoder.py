"""The encoder: one autoencoder on its device. Axes: b = images, h w = pixels, c i j = latent."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from data_pipelines.encode_images.config import EncodeImagesConfig
from transfusion.artifacts.artifact import Artifact
from transfusion.autoencoder.autoencoder import Autoencoder


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder made of a batch; on CUDA it may still be at it."""

    mean: Float[Tensor, "b c i j"]
    std: Float[Tensor, "b c i j"]
    began: Any
    """Seconds on a CPU, events on CUDA."""
    ended: Any

    def halves(self) -> tuple[Float16[np.ndarray, "b c i j"], Float16[np.ndarray, "b c i j"]]:
        """Mean and standard deviation in this process; waits for them."""
        return self.mean.half().cpu().numpy(), self.std.half().cpu().numpy()

    def seconds(self) -> float:
        """How long the encoder was at it; to be asked after `halves`."""
        if isinstance(self.began, float):
            return self.ended - self.began
        return self.began.elapsed_time(self.ended) / 1e3


class Encoder:
    """Encodes batches, one at a time; safe for many threads.

    Args:
        compiled: Compile it on CUDA. Neither that nor the layout in memory is part of an identity: both change
            values by no more than other kernels of the same precision do, which on CUDA is within tolerance.
    """

    def __init__(
        self, folder: Artifact, config: EncodeImagesConfig, *, device: str, compiled: bool
    ) -> None:
        self._autoencoder = Autoencoder.load(folder.folder(), device=device)
        self._config, self._device = config, device
        self._turn = threading.Lock()
        if device == "cuda":
            network = self._autoencoder.network.to(memory_format=torch.channels_last)
            if compiled:
                network.encoder = torch.compile(network.encoder, dynamic=False)

    def staged(self, pixels: UInt8[np.ndarray, "b h w 3"]) -> UInt8[Tensor, "b h w 3"]:
        """The pixels in memory from which the device can take them by itself."""
        images = torch.from_numpy(pixels)
        return images.pin_memory() if self._device == "cuda" else images

    def encode(self, images: UInt8[Tensor, "b h w 3"]) -> Encoded:
        """The posterior of the images."""
        with self._turn, threads(self._config.threads_per_actor):
            began = self._now()
            images = images.to(self._device, non_blocking=True)
            bf16 = self._config.precision == "bf16"
            with torch.autocast(self._device, torch.bfloat16, enabled=bf16):
                posterior = self._autoencoder.encode(images)
            return Encoded(posterior.mean, posterior.std, began, self._now())

    def _now(self) -> Any:
        if self._device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch computes with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
