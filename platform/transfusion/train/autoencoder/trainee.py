"""One step of autoencoder training, validation, and the artifact that comes of it.

Axes: b = images, h w = pixels, c i j = latent.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.autoencoder.autoencoder import Autoencoder, psnr_db, to_images, to_signal
from transfusion.autoencoder.calibrate import CHUNK_IMAGES, calibrate, mean_psnr_db
from transfusion.autoencoder.network import (
    build_network,
    decode_raw,
    latent_shape_of,
    load_network,
    posterior,
    save_network,
)
from transfusion.autoencoder.run import metadata_of
from transfusion.errors import ArtifactError
from transfusion.resources import TrainResources
from transfusion.train.autoencoder.codes import (
    all_counts,
    count,
    is_restart,
    restart_dead_codes,
    usage,
)
from transfusion.train.autoencoder.config import TrainAutoencoderConfig
from transfusion.train.autoencoder.crops import CropBatches, Crops
from transfusion.train.autoencoder.forward import QuantizedReconstruction, Reconstruction
from transfusion.train.autoencoder.judged import Judged, Judgement
from transfusion.train.autoencoder.perception import Perception
from transfusion.train.parallel import (
    AveragedWeights,
    all_sum,
    data_mesh,
    gather,
    lanes_of,
    reshard,
    set_precision,
    shard,
)
from transfusion.train.pictures import NUM_SHOWN, Preview, png_row
from transfusion.train.trainee import StepResult, Written


class AutoencoderTrainee:
    """Trains the network behind `Reconstruction`; see `transfusion.train.trainee.Trainee`."""

    def __init__(
        self,
        config: TrainAutoencoderConfig,
        crops: Crops,
        *,
        device: torch.device,
        resources: TrainResources | None = None,
    ) -> None:
        resources = resources or TrainResources()
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
        set_precision(config.precision, device=device, cpu_threads=config.cpu_threads_per_worker)
        torch.manual_seed(config.seed)
        height_px, width_px = self._images.shape[1:3]
        network = build_network(config.network, sample_size_px=height_px)
        self._network_config = dict(network.config)
        self._latent_shape = latent_shape_of(network, height_px=height_px, width_px=width_px)
        self._batches = CropBatches(
            config,
            self._images[: self._num_training],
            latent_shape=self._latent_shape,
            device=device,
        )
        kind = Reconstruction if config.network.codebook_size is None else QuantizedReconstruction
        self._module: Reconstruction | QuantizedReconstruction = kind(network)
        self.model: nn.Module = self._module
        if config.perceptual or config.discriminator:
            self.model = Judged(self._module, config, _perception(config, device))
        self.model.to(device)
        mesh = data_mesh(device, shard_group_size=resources.shard_group_for(dist.get_world_size()))
        shard(self.model, blocks=(), mesh=mesh, precision=config.precision)

    def forward_backward(self, step: int, *, stop: bool = False) -> StepResult:
        """Each lane's share of the batch's mean absolute error per pixel, and of what its latents cost."""
        config, world = self.config, dist.get_world_size()
        self._prepare_codes(step)
        sums = {"absolute_error": 0.0}
        weights: dict[str, float] = {}
        counts = self._no_counts()
        waited = 0.0
        for lane in lanes_of(dist.get_rank(), world_size=world, lanes=config.lanes):
            began = time.perf_counter()
            signal, noise = self._batches.micro_batch(step, lane or 0)
            waited += time.perf_counter() - began
            weight = 0.0 if lane is None else 1.0 / (signal.numel() * config.lanes)
            reconstruction, latent, judged = self._run(signal, noise, step)
            absolute = (reconstruction - signal).abs().sum()
            term = self._module.term(config, signal, *latent)
            loss = absolute + term.loss
            if judged is not None:
                loss = loss + self._judged(judged, signal.numel(), weight, sums, weights)
            # FSDP takes the mean over ranks; the shares are to add up.
            (loss * weight * world).backward()
            sums["absolute_error"] += absolute.item() * weight
            sums[term.name] = sums.get(term.name, 0.0) + term.sum.item() * weight
            weights[term.name] = term.weight
            if counts is not None and lane is not None:
                counts += count(latent[-1], len(counts))
        total = all_sum({**sums, "stop": float(stop)})
        asked = total.pop("stop") > 0
        whole = total["absolute_error"] + sum(w * total[name] for name, w in weights.items())
        if counts is not None:
            self._quantized.usage += all_counts(counts)
            total |= usage(counts)
        return StepResult(
            values={"loss": whole, **total},
            shown={"loss": f"{whole:.4f}"},
            rates={"images": float(config.batch_size)},
            data_s=waited,
            stop=asked,
        )

    def validate(self) -> Mapping[str, float]:
        """Quality of held-out images through the posterior's mean, and how many of the codes they take."""
        if isinstance(self._module, QuantizedReconstruction):
            # Early in training, too, it is told what would come out; the next step sets it again.
            self._module.quantizes = True
        chunks = self._images[self._num_training :].split(CHUNK_IMAGES)
        sums = {"psnr_db": 0.0, "absolute_error": 0.0}
        counts = self._no_counts()
        world = dist.get_world_size()
        with torch.no_grad():
            for index in lanes_of(dist.get_rank(), world_size=world, lanes=len(chunks)):
                images = chunks[index or 0].to(self._device)
                signal = to_signal(images)
                noise = torch.zeros((len(signal), *self._latent_shape), device=self._device)
                made, latent, _ = self._run(signal, noise, None)
                if index is not None:
                    sums["psnr_db"] += psnr_db(to_images(made), images).double().sum().item()
                    error = (made - signal).abs().flatten(1).mean(dim=1)
                    sums["absolute_error"] += error.double().sum().item()
                    if counts is not None:
                        counts += count(latent[-1], len(counts))
        total = all_sum(sums)
        num_images = len(self._images) - self._num_training
        found = {name: value / num_images for name, value in total.items()}
        return found if counts is None else found | usage(all_counts(counts))

    def preview(self, averaged: AveragedWeights) -> Preview | None:
        """Held-out images above their reconstructions."""
        weights = gather(averaged.weights)
        if dist.get_rank() != 0:
            return None
        network = build_network(self.config.network, sample_size_px=self._images.shape[1])
        network.load_state_dict(_of_network(weights))
        images = self._images[self._num_training :][:NUM_SHOWN]
        with torch.no_grad():
            through = decode_raw(network.eval(), posterior(network, to_signal(images)).mean)
        pairs = torch.cat([images, to_images(through)], dim=1).numpy()
        return Preview(png=png_row(pairs), about={"shown": "images above their reconstructions"})

    def suspects(self) -> Sequence[int]:
        """None: every lane of a small batch is told."""
        return []

    def documents(self, step: int) -> Mapping[int, Sequence[str]]:
        """Keys of this rank's images."""
        owned = lanes_of(dist.get_rank(), world_size=dist.get_world_size(), lanes=self.config.lanes)
        return {
            lane: [self._keys[row] for row in self._batches.rows(step, lane).tolist()]
            for lane in owned
            if lane is not None
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

    def _run(
        self, signal: Tensor, noise: Tensor, step: int | None
    ) -> tuple[Tensor, list[Tensor], Judgement | None]:
        """Reconstructions, what is known of their latents, and how they are judged; no step for validation."""
        if not isinstance(self.model, Judged):
            made, *latent = self.model(signal, noise)
            return made, latent, None
        rule = self.config.discriminator
        contested = step is not None and rule is not None and step >= rule.from_step
        made, *latent, judged = self.model(signal, noise, contested)
        return made, latent, judged

    def _judged(
        self,
        judged: Judgement,
        num_elements: int,
        share: float,
        sums: dict[str, float],
        weights: dict[str, float],
    ) -> Tensor:
        """What judgements add to the loss of a lane, in units of the absolute error summed over pixels."""
        config = self.config
        loss = judged.critic
        if config.perceptual is not None:
            loss = loss + config.perceptual.weight * judged.perceptual
            weights["perceptual"] = config.perceptual.weight
        if config.discriminator is not None:
            loss = loss + config.discriminator.weight * judged.generator
            weights["generator"] = config.discriminator.weight
        for name, value in judged._asdict().items():
            sums[name] = sums.get(name, 0.0) + value.item() * num_elements * share
        return loss * num_elements

    def _no_counts(self) -> Float[Tensor, " k"] | None:
        if not isinstance(self._module, QuantizedReconstruction):
            return None
        return torch.zeros_like(self._module.usage)

    def _prepare_codes(self, step: int) -> None:
        """Says whether codes are heard in this step; moves those that are dead, or at the first such step all."""
        config = self.config
        if not isinstance(self._module, QuantizedReconstruction):
            return
        self._module.quantizes = step >= config.quantize_from_step
        begins = bool(step) and step == config.quantize_from_step
        if begins:
            self._module.usage.zero_()
        elif not (
            self._module.quantizes
            and is_restart(
                step, every_steps=config.restart_codes_every_steps, total_steps=config.steps
            )
        ):
            return
        with torch.no_grad():
            _, (latents, *_), _ = self._run(*self._batches.micro_batch(step, 0), None)
        reshard(self.model)
        restart_dead_codes(self._quantized, latents, seed=config.seed, step=step)

    @property
    def _quantized(self) -> QuantizedReconstruction:
        assert isinstance(self._module, QuantizedReconstruction)
        return self._module


def _of_network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the autoencoder under its own names, without those of what judges it."""
    plain = {name.removeprefix("inner."): value for name, value in weights.items()}
    return {
        name.removeprefix("network."): value
        for name, value in plain.items()
        if name.startswith("network.")
    }


def _perception(config: TrainAutoencoderConfig, device: torch.device) -> Perception | None:
    if config.perceptual is None:
        return None
    return Perception(Path(config.perceptual.path).expanduser(), device=device)


def build(
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    device: torch.device,
    resources: TrainResources,
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
    return AutoencoderTrainee(checked, crops, device=device, resources=resources)
