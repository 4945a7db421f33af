"""One step of joint training: both losses over the global batch. Plain torch.

A rank runs the micro-batches of its lanes; losses are divided by counts of the whole global batch, never by
those of a micro-batch or a rank, so that any number of workers up to the lanes takes the same steps.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn

from transfusion.diffusion.noising import Noising
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import LossSums, combine, loss_sums
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.special import SpecialIds
from transfusion.train.config import TrainConfig
from transfusion.train.parallel import (
    AveragedWeights,
    all_sum,
    data_mesh,
    fill,
    gather,
    lanes_of,
    set_precision,
    shard,
)
from transfusion.train.pictures import Preview
from transfusion.train.pretrained import Start, begin_everywhere, freeze_text
from transfusion.train.preview import Painter, held_out_captions
from transfusion.train.trainee import StepResult, Written

log = logging.getLogger(__name__)

RAW_NAME, AVERAGED_NAME = "model.safetensors", "ema.safetensors"


@runtime_checkable
class BatchSource(Protocol):
    """Where batches come from: arithmetic on (step, lane), so that resuming is a number."""

    @property
    def lanes(self) -> int:
        """Micro-batches of a global batch."""

    @property
    def num_validation(self) -> int:
        """Held-out micro-batches."""

    def micro_batch(self, step: int, lane: int) -> PackedBatch:
        """A lane's part of a global batch."""

    def zero_batch(self) -> PackedBatch:
        """A micro-batch in which everything has weight 0."""

    def validation(self, index: int) -> PackedBatch:
        """A held-out micro-batch with fixed noise and timesteps."""

    def document_ids(self, step: int, lane: int) -> Sequence[str]:
        """What a micro-batch was packed from, for messages."""


class TransformerTrainee:
    """Trains a `TransfusionModel`; see `transfusion.train.trainee.Trainee`."""

    def __init__(
        self,
        config: TrainConfig,
        source: BatchSource,
        *,
        num_pieces: int,
        num_codes: int = 0,
        latent_channels: int,
        device: torch.device,
        painter: Callable[[], Painter] | None = None,
        start: Start | None = None,
    ) -> None:
        self.config = config
        self._source = source
        self._device = device
        self._special = SpecialIds.after(num_pieces, num_codes=num_codes)
        set_precision(config.precision, device=device, cpu_threads=config.cpu_threads_per_worker)
        model = self._new_model(config, latent_channels, on="meta")
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        if config.frozen_text:
            freeze_text(model)
        shard(model, blocks=model.blocks, mesh=data_mesh(device), precision=config.precision)
        model.to_empty(device=device)
        whole: TransfusionModel | None = None
        if dist.get_rank() == 0:
            # Drawn whole, on CPU, by one rank: the weights do not depend on the number of ranks.
            whole = self._new_model(config, latent_channels, on="cpu")
            whole.init_weights(config.seed)
        if start is not None:
            loaded = begin_everywhere(whole, start, special=self._special)
            if config.lr_scale_pretrained != 1:
                model.lr_scales = dict.fromkeys(loaded, config.lr_scale_pretrained)
        fill(model, whole.state_dict() if whole is not None else {})
        self.model: nn.Module = model
        self._noising = Noising.of(config.objective, device=device)
        self._make_painter = painter
        self._painter: Painter | None = None
        self._suspects: list[int] = []
        # One thread touches the source: it reads the next step's batches while this one is computed.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._ahead: dict[int, Future[list[PackedBatch]]] = {}

    def _new_model(self, config: TrainConfig, latent_channels: int, *, on: str) -> TransfusionModel:
        with torch.device(on):
            return TransfusionModel(
                config.model,
                vocab_size=self._special.vocab_size,
                latent_channels=latent_channels,
            )

    def forward_backward(self, step: int, *, stop: bool = False) -> StepResult:
        """Gradients of LM + weight x diffusion of global batch `step`."""
        began = time.perf_counter()
        owned = lanes_of(
            dist.get_rank(), world_size=dist.get_world_size(), lanes=self._source.lanes
        )
        batches = self._take(step, owned)
        waited = time.perf_counter() - began
        counts = all_sum(
            {
                "text_tokens": sum(float(batch.text_weight.sum()) for batch in batches),
                "images": sum(float(batch.image_weight.sum()) for batch in batches),
            },
            device=self._device,
        )
        found = {"lm": 0.0, "diffusion": 0.0, "stop": float(stop)}
        self._suspects = []
        for lane, batch in zip(owned, batches, strict=True):
            sums = self._forward(batch)
            share = combine(
                sums,
                global_lm_count=counts["text_tokens"],
                global_image_count=counts["images"],
                diffusion_weight=self.config.objective.diffusion_weight,
            )
            # FSDP takes the mean over ranks; the shares are to add up.
            (share * dist.get_world_size()).backward()
            lm, diffusion = sums.lm_sum.item(), sums.diffusion_sum.item()
            if lane is not None and not math.isfinite(lm + diffusion):
                self._suspects.append(lane)
            found["lm"] += lm
            found["diffusion"] += diffusion
        everyone = all_sum(found, device=self._device)
        losses = self._losses(everyone, counts)
        patches = float(batches[0].image_positions.shape[1])
        return StepResult(
            values={**losses, **counts},
            shown={name: f"{losses[name]:.4f}" for name in ("lm_loss", "diffusion_loss")},
            rates={
                "tokens": counts["text_tokens"] + patches * counts["images"],
                "images": counts["images"],
            },
            data_s=waited,
            stop=everyone["stop"] > 0,
        )

    def validate(self) -> Mapping[str, float]:
        """Both losses on held-out sequences, with the same noise and timesteps every time."""
        count = self._source.num_validation
        if not count:
            return {}
        total = {"lm": 0.0, "diffusion": 0.0, "text_tokens": 0.0, "images": 0.0}
        with torch.no_grad():
            for index in lanes_of(dist.get_rank(), world_size=dist.get_world_size(), lanes=count):
                # A rank that has none left runs the first again, unweighted: forwards are collectives.
                batch = self._reading.submit(self._source.validation, index or 0).result()
                sums = self._forward(batch)
                if index is not None:
                    total["lm"] += sums.lm_sum.item()
                    total["diffusion"] += sums.diffusion_sum.item()
                    total["text_tokens"] += sums.lm_count.item()
                    total["images"] += sums.image_count.item()
        everyone = all_sum(total, device=self._device)
        return self._losses(everyone, everyone)

    def preview(self, averaged: AveragedWeights) -> Preview | None:
        """Held-out captions, drawn; a failure here is told and does not end the run."""
        if self._make_painter is None or not self._source.num_validation:
            return None
        weights = gather(averaged.weights)
        if dist.get_rank() != 0:
            return None
        try:
            self._painter = self._painter or self._make_painter()
            batch = self._reading.submit(self._source.validation, 0).result()
            captions = held_out_captions(batch, self._special)
            return self._painter.paint(weights, captions) if captions else None
        except Exception as error:
            log.warning("no preview: %s: %s", type(error).__name__, error)
            return None

    def describe(self, step: int) -> str:
        """Documents of the lanes whose loss was no number; of the whole batch when only gradients were."""
        everyone: list[list[int]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, self._suspects)
        lanes = sorted({lane for part in everyone for lane in part})
        told = []
        for lane in lanes or range(self._source.lanes):
            ids = list(self._reading.submit(self._source.document_ids, step, lane).result())
            more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
            told.append(f"lane {lane}: {', '.join(ids[:8])}{more}")
        return "; ".join(told[:4]) + (f"; and {len(told) - 4} lanes more" if len(told) > 4 else "")

    def documents(self, step: int) -> Mapping[str, Sequence[str]]:
        """Documents of every lane."""
        return {
            f"lane {lane}": list(
                self._reading.submit(self._source.document_ids, step, lane).result()
            )
            for lane in range(self._source.lanes)
        }

    def write(self, folder: Path, *, averaged: AveragedWeights) -> Written:
        """Raw and averaged weights as safetensors."""
        from safetensors.torch import save_file

        for name, weights in (
            (RAW_NAME, dict(self.model.named_parameters())),
            (AVERAGED_NAME, averaged.weights),
        ):
            whole = gather(weights)
            if dist.get_rank() == 0:
                tensors = {key: tensor.contiguous() for key, tensor in whole.items()}
                save_file(tensors, folder / name, metadata={"format": "pt"})
        return Written(metadata={"num_parameters": self.num_parameters}, metrics={})

    def _take(self, step: int, owned: Sequence[int | None]) -> list[PackedBatch]:
        """This rank's batches of a step; asks for those of the next."""

        def read(wanted: int) -> list[PackedBatch]:
            return [
                self._source.zero_batch()
                if lane is None
                else self._source.micro_batch(wanted, lane)
                for lane in owned
            ]

        now = self._ahead.pop(step, None) or self._reading.submit(read, step)
        self._ahead.clear()
        batches = now.result()
        if step + 1 < self.config.steps:
            self._ahead[step + 1] = self._reading.submit(read, step + 1)
        return batches

    def _forward(self, batch: PackedBatch) -> LossSums:
        there = batch.to(self._device, non_blocking=True)
        noised = self._noising.apply(there.latents, there.noise, there.timesteps, clean=there.clean)
        z_loss_weight = self.config.objective.z_loss_weight
        output = self.model(there, noised.latents)
        return loss_sums(output, there, noised, z_loss_weight=z_loss_weight)

    def _losses(self, sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
        lm = sums["lm"] / max(counts["text_tokens"], 1.0)
        diffusion = sums["diffusion"] / max(counts["images"], 1.0)
        total = lm + self.config.objective.diffusion_weight * diffusion
        return {"loss": total, "lm_loss": lm, "diffusion_loss": diffusion}
