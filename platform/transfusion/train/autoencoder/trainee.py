"""One step of autoencoder training, validation, and the artifact that comes of it.

Axes: b = images, h w = pixels, c i j = latent.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.autoencoder.autoencoder import (
    Autoencoder,
    Posterior,
    build_network,
    load_network,
    posterior,
    psnr_db,
    save_network,
    to_images,
    to_signal,
)
from transfusion.autoencoder.calibrate import CHUNK_IMAGES, calibrate, mean_psnr_db
from transfusion.autoencoder.run import metadata_of
from transfusion.errors import ArtifactError
from transfusion.train.autoencoder.config import TrainAutoencoderConfig
from transfusion.train.parallel import (
    AveragedWeights,
    all_sum,
    data_mesh,
    gather,
    lanes_of,
    set_precision,
    shard,
)
from transfusion.train.pictures import NUM_SHOWN, Preview, png_row
from transfusion.train.trainee import StepResult, Written


class Reconstruction(nn.Module):
    """Encoder, sampled latent, decoder: one call, so that sharding sees one forward."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, signal: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c i j"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """The reconstruction from a sampled latent; mean and standard deviation of the posterior.

        A plain tuple of new tensors: sharding hooks its gathering of weights onto these.
        """
        found = posterior(self.network, signal)
        made = self.network.decode(found.sample(noise)).sample.float()
        return made.clone(), found.mean.clone(), found.std.clone()


def kl_divergence(found: Posterior) -> Float[Tensor, " b"]:
    """KL of each posterior from the unit normal, summed over the latent."""
    variance = found.std.square()
    terms = found.mean.square() + variance - 1.0 - variance.log()
    return 0.5 * terms.flatten(1).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Images of one size, sorted by key, so that shards and their order do not show."""

    keys: list[str]
    images: UInt8[np.ndarray, "n h w 3"]


class AutoencoderTrainee:
    """Trains the network behind `Reconstruction`; see `transfusion.train.trainee.Trainee`."""

    def __init__(
        self, config: TrainAutoencoderConfig, crops: Crops, *, device: torch.device
    ) -> None:
        num_images = len(crops.keys)
        if num_images <= config.heldout_images:
            raise ArtifactError(
                f"{num_images} images, of which heldout_images {config.heldout_images} are set aside: none "
                "is left to train on; add images or lower heldout_images"
            )
        self.config = config
        self._device = device
        self._keys = crops.keys
        self._images = torch.from_numpy(crops.images)
        self._num_training = num_images - config.heldout_images
        self._orders: dict[int, np.ndarray] = {}
        set_precision(config.precision, device=device, cpu_threads=config.cpu_threads_per_worker)
        torch.manual_seed(config.seed)
        size = self._images.shape[1]
        network = build_network(config.network, sample_size_px=size)
        self._network_config = dict(network.config)
        self.downsampling = 2 ** (len(network.config.block_out_channels) - 1)
        if size % self.downsampling or self._images.shape[2] % self.downsampling:
            raise ArtifactError(
                f"images of {size} x {self._images.shape[2]} px: sides must be multiples of "
                f"{self.downsampling}, the autoencoder's downsampling"
            )
        self._latent_shape = (
            int(network.config.latent_channels),
            size // self.downsampling,
            self._images.shape[2] // self.downsampling,
        )
        self.model: nn.Module = Reconstruction(network).to(device)
        shard(self.model, blocks=(), mesh=data_mesh(device), precision=config.precision)

    def forward_backward(self, step: int, *, stop: bool = False) -> StepResult:
        """Each lane's share of the batch's mean absolute error per pixel and KL per pixel."""
        config, world = self.config, dist.get_world_size()
        sums = {"absolute_error": 0.0, "kl": 0.0}
        waited = 0.0
        for lane in lanes_of(dist.get_rank(), world_size=world, lanes=config.lanes):
            began = time.perf_counter()
            signal, noise = self._micro_batch(step, lane or 0)
            waited += time.perf_counter() - began
            weight = 0.0 if lane is None else 1.0 / (signal.numel() * config.lanes)
            reconstruction, mean, std = self.model(signal, noise)
            absolute = (reconstruction - signal).abs().sum()
            kl = kl_divergence(Posterior(mean=mean, std=std)).sum()
            # FSDP takes the mean over ranks; the shares are to add up.
            ((absolute + config.kl_weight * kl) * weight * world).backward()
            sums["absolute_error"] += absolute.item() * weight
            sums["kl"] += kl.item() * weight
        total = all_sum({**sums, "stop": float(stop)}, device=self._device)
        asked = total.pop("stop") > 0
        loss = total["absolute_error"] + config.kl_weight * total["kl"]
        return StepResult(
            values={"loss": loss, **total},
            shown={"loss": f"{loss:.4f}"},
            rates={"images": float(config.batch_size)},
            data_s=waited,
            stop=asked,
        )

    def validate(self) -> Mapping[str, float]:
        """Quality of held-out images through the posterior's mean."""
        chunks = self._images[self._num_training :].split(CHUNK_IMAGES)
        sums = {"psnr_db": 0.0, "absolute_error": 0.0}
        world = dist.get_world_size()
        with torch.no_grad():
            for index in lanes_of(dist.get_rank(), world_size=world, lanes=len(chunks)):
                images = chunks[index or 0].to(self._device)
                signal = to_signal(images)
                noise = torch.zeros((len(signal), *self._latent_shape), device=self._device)
                made, _, _ = self.model(signal, noise)
                if index is not None:
                    sums["psnr_db"] += psnr_db(to_images(made), images).double().sum().item()
                    error = (made - signal).abs().flatten(1).mean(dim=1)
                    sums["absolute_error"] += error.double().sum().item()
        total = all_sum(sums, device=self._device)
        count = len(self._images) - self._num_training
        return {name: value / count for name, value in total.items()}

    def preview(self, averaged: AveragedWeights) -> Preview | None:
        """Held-out images above their reconstructions."""
        weights = gather(averaged.weights)
        if dist.get_rank() != 0:
            return None
        network = build_network(self.config.network, sample_size_px=self._images.shape[1])
        network.load_state_dict(_of_network(weights))
        images = self._images[self._num_training :][:NUM_SHOWN]
        with torch.no_grad():
            through = network.eval().decode(network.encode(to_signal(images)).latent_dist.mean)
        pairs = torch.cat([images, to_images(through.sample)], dim=1).numpy()
        return Preview(png=png_row(pairs), about={"shown": "images above their reconstructions"})

    def describe(self, step: int) -> str:
        """Keys of the batch."""
        rows = [row for lane in range(self.config.lanes) for row in self._rows(step, lane).tolist()]
        keys = ", ".join(self._keys[row] for row in rows[:8])
        return f"images {keys}" + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")

    def documents(self, step: int) -> Mapping[str, Sequence[str]]:
        """Keys of every lane."""
        return {
            f"lane {lane}": [self._keys[row] for row in self._rows(step, lane).tolist()]
            for lane in range(self.config.lanes)
        }

    def write(self, folder: Path, *, averaged: AveragedWeights) -> Written:
        """The averaged weights in the diffusers layout, with the statistics of their latents."""
        weights = _of_network(gather(averaged.weights))
        if dist.get_rank() != 0:
            return Written(metadata={}, metrics={})
        save_network(folder, config=self._network_config, weights=weights)
        # In plain fp32 whatever the training's precision: constants that others divide by.
        set_precision("fp32", device=self._device, cpu_threads=self.config.cpu_threads_per_worker)
        calibrate(
            load_network(folder).to(self._device),
            self._images[: self.config.calibration_images].to(self._device),
        ).write(folder)
        ready = Autoencoder.load(folder, device=self._device)
        quality = mean_psnr_db(ready, self._images[self._num_training :])
        return Written(metadata=metadata_of(ready, self._images), metrics={"psnr_db": quality})

    def _micro_batch(
        self, step: int, lane: int
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c i j"]]:
        rows = self._rows(step, lane)
        # Counter-based, on CPU: neither rank nor device nor restart changes what is drawn.
        draw = np.random.Generator(
            np.random.Philox(
                key=np.array([self.config.seed, 1], np.uint64), counter=[step, lane, 0, 0]
            )
        )
        noise = draw.standard_normal((len(rows), *self._latent_shape), np.float32)
        images: UInt8[Tensor, "b h w 3"] = self._images[torch.from_numpy(rows)].to(self._device)
        return to_signal(images), torch.from_numpy(noise).to(self._device)

    def _rows(self, step: int, lane: int) -> np.ndarray:
        """Rows of one lane's part of a batch: every epoch is another permutation."""
        size = self.config.batch_size // self.config.lanes
        first = step * self.config.batch_size + lane * size
        positions = range(first, first + size)
        return np.array(
            [self._order(at // self._num_training)[at % self._num_training] for at in positions]
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            key = np.array([self.config.seed, 2], np.uint64)
            draw = np.random.Generator(np.random.Philox(key=key, counter=[epoch, 0, 0, 0]))
            # A batch may span two epochs; none before them is asked for again.
            self._orders = {
                **{old: order for old, order in self._orders.items() if old == epoch - 1},
                epoch: draw.permutation(self._num_training),
            }
        return self._orders[epoch]


def _of_network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `Reconstruction` under the network's own names."""
    return {name.removeprefix("network."): value for name, value in weights.items()}


def build(
    config: Mapping[str, Any], inputs: Mapping[str, Artifact], device: torch.device
) -> AutoencoderTrainee:
    """What a training worker calls."""
    checked = TrainAutoencoderConfig.model_validate_json(json.dumps(config))
    artifact = inputs["images"]
    rows = read_pixels(artifact)
    if not rows:
        raise ArtifactError(
            f"{artifact.store.url(artifact.path)}: holds no images: an autoencoder has nothing to learn from"
        )
    crops = Crops(
        keys=[f"{row.key}#{row.image_index}" for row in rows],
        images=np.stack([row.pixels for row in rows]),
    )
    return AutoencoderTrainee(checked, crops, device=device)
