"""One step of joint training: both losses over the global batch. Plain torch.

A rank runs the micro-batches of its lanes; losses are divided by counts of the whole global batch, never by
those of a micro-batch or a rank, so that any number of workers up to the lanes takes the same steps.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transfusion.diffusion.noising import Noising
from transfusion.model.flops import Work, training_flops
from transfusion.objective import ChunkedTextLosses, LossSums, combine, loss_sums
from transfusion.resources import TrainResources
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.special import SpecialIds
from transfusion.train.config import TrainConfig
from transfusion.train.measures import (
    GradientGroups,
    Stopwatch,
    StreamSizes,
    Tally,
    level_sums,
    loss_tally,
    losses,
    measured,
)
from transfusion.train.parallel import (
    AveragedWeights,
    add_up_copies,
    all_sum,
    gather,
    hold_gathered,
    lanes_of,
    set_precision,
)
from transfusion.train.peaks import peak_tflops
from transfusion.train.pictures import Preview
from transfusion.train.pretrained import Start
from transfusion.train.preview import Painter, held_out_pairs
from transfusion.train.sharded import make_sharded, write_weights
from transfusion.train.source import BatchSource, ReadAhead
from transfusion.train.trainee import StepResult, Written

log = logging.getLogger(__name__)


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
        resources: TrainResources | None = None,
        start: Start | None = None,
    ) -> None:
        resources = resources or TrainResources()
        self.config = config
        self._source = source
        self._device = device
        self._special = SpecialIds.after(num_pieces, num_codes=num_codes)
        self._first_code = self._special.first_code if num_codes else None
        self._shown = ("text_loss", "code_loss") if num_codes else ("lm_loss", "diffusion_loss")
        set_precision(config.precision, device=device, cpu_threads=config.cpu_threads_per_worker)
        model = make_sharded(
            config,
            resources,
            special=self._special,
            latent_channels=latent_channels,
            device=device,
            start=start,
        )
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model: nn.Module = model
        self._noising = Noising.of(config.objective, device=device)
        self._make_painter = painter
        self._painter: Painter | None = None
        self._holds_gathered = resources.gathered_for == "step"
        self._peak = peak_tflops(device, resources.peak_tflops)
        self._lane_losses: list[tuple[int, Tensor]] = []
        self._reading = ReadAhead(source, steps=config.steps, pinned=device.type == "cuda")
        self._sizes = StreamSizes(model.blocks[-1])
        self._gradients = GradientGroups(model.named_parameters())

    def forward_backward(self, step: int, *, stop: bool = False) -> StepResult:
        """Gradients of LM + weight x diffusion of global batch `step`."""
        began = time.perf_counter()
        owned = self._owned()
        batches = self._reading.take(step, owned)
        waited = time.perf_counter() - began
        counts = all_sum(
            {
                "text_tokens": sum(float(batch.text_weight.sum()) for batch in batches),
                "images": sum(float(batch.image_weight.sum()) for batch in batches),
                "images_as_tokens": sum(self._images_as_tokens(batch) for batch in batches),
                "flops": sum(
                    self._flops(batch)
                    for lane, batch in zip(owned, batches, strict=True)
                    if lane is not None
                ),
                "stop": float(stop),
            }
        )
        flops, stopping = counts.pop("flops"), counts.pop("stop") > 0
        as_tokens = counts.pop("images_as_tokens")
        tally, watch = Tally(self._device), Stopwatch(self._device)
        self._lane_losses = []
        for index, (lane, batch) in enumerate(zip(owned, batches, strict=True)):
            # Once a step, not once a micro-batch.
            last = index == len(owned) - 1
            add_up_copies(self.model, after_backward=last)
            if self._holds_gathered:
                hold_gathered(self.model, after_backward=not last)
            watch.mark("forward")
            sums = self._forward(batch, tally)
            share = combine(
                sums,
                global_lm_count=counts["text_tokens"],
                global_image_count=counts["images"],
                diffusion_weight=self.config.objective.diffusion_weight,
                lm_weight=self.config.objective.lm_weight,
                bound_weight=self.config.objective.bound_weight,
            )
            watch.mark("backward")
            # FSDP takes the mean over ranks; the shares are to add up.
            (share * dist.get_world_size()).backward()
            watch.mark()
            if lane is not None:
                self._lane_losses.append((lane, share.detach()))
        tally.add(**self._gradients.sums())
        everyone = tally.over_ranks()
        found = losses(everyone, counts, self.config.objective)
        forward_s, backward_s = watch.seconds(("forward", "backward"))
        patches = float(batches[0].image_positions.shape[1])
        return StepResult(
            values={**found, **counts, **measured(everyone, counts)},
            shown={name: f"{found[name]:.4f}" for name in self._shown if name in found},
            rates={
                "tokens": counts["text_tokens"] + patches * counts["images"],
                "images": counts["images"] + as_tokens,
            },
            data_s=waited,
            forward_s=forward_s,
            backward_s=backward_s,
            flops=flops,
            peak_flops_per_s=self._peak and 1e12 * self._peak * dist.get_world_size(),
            stop=stopping,
        )

    def validate(self) -> Mapping[str, float]:
        """Both losses on held-out sequences, with the same noise and timesteps every time."""
        count = self._source.num_validation
        if not count:
            return {}
        tally = Tally(self._device)
        with torch.no_grad():
            for index in lanes_of(dist.get_rank(), world_size=dist.get_world_size(), lanes=count):
                # A rank that has none left runs the first again, unweighted: forwards are collectives.
                sums = self._forward(self._reading.ask(self._source.validation, index or 0))
                weight = 0.0 if index is None else 1.0
                tally.add(**{name: weight * value for name, value in loss_tally(sums).items()})
                tally.add(text_tokens=weight * sums.lm_count, images=weight * sums.image_count)
        everyone = tally.over_ranks()
        return losses(everyone, everyone, self.config.objective)

    def preview(self, averaged: AveragedWeights) -> Preview | None:
        """Held-out captions, drawn, and their images, described; a failure here is told and ends no run."""
        if self._make_painter is None or not self._source.num_validation:
            return None
        weights = gather(averaged.weights)
        if dist.get_rank() != 0:
            return None
        try:
            self._painter = self._painter or self._make_painter()
            batch = self._reading.ask(self._source.validation, 0)
            pairs = held_out_pairs(batch, self._special)
            return self._painter.paint(weights, pairs) if pairs else None
        except Exception as error:
            log.warning("no preview: %s: %s", type(error).__name__, error)
            return None

    def suspects(self) -> Sequence[int]:
        """Lanes of this rank."""
        return [lane for lane, loss in self._lane_losses if not math.isfinite(loss.item())]

    def documents(self, step: int) -> Mapping[int, Sequence[str]]:
        """Documents of this rank's lanes, whose shards it has read already."""
        return {
            lane: list(self._reading.ask(self._source.document_ids, step, lane))
            for lane in self._owned()
            if lane is not None
        }

    def write(self, folder: Path, *, averaged: AveragedWeights) -> Written:
        """Raw and averaged weights as safetensors."""
        write_weights(self.model, averaged, folder)
        return Written(metadata={"num_parameters": self.num_parameters}, metrics={})

    def _owned(self) -> list[int | None]:
        """This rank's lanes of every step."""
        return lanes_of(dist.get_rank(), world_size=dist.get_world_size(), lanes=self._source.lanes)

    def _forward(self, batch: PackedBatch, tally: Tally | None = None) -> LossSums:
        """Losses of a micro-batch; into a tally go its sums too, and what else is measured of it."""
        there = batch.to(self._device, non_blocking=True)
        noised = self._noising.apply(there.latents, there.noise, there.timesteps, clean=there.clean)
        z_loss_weight = self.config.objective.z_loss_weight
        chunked = None
        if self.config.lm_head_chunk_rows is not None:
            chunked = ChunkedTextLosses(
                targets=there.text_targets,
                chunk_rows=self.config.lm_head_chunk_rows,
                with_z=z_loss_weight > 0,
            )
        output = self.model(there, noised.latents, text_losses=chunked)
        sums = loss_sums(
            output, there, noised, z_loss_weight=z_loss_weight, first_code=self._first_code
        )
        if tally is not None:
            num_timesteps = self.config.objective.num_timesteps
            tally.add(**loss_tally(sums))
            tally.add(**level_sums(sums, there, num_timesteps=num_timesteps))
            tally.add(**self._sizes.sums(there, first_code=self._first_code))
        return sums

    def _images_as_tokens(self, batch: PackedBatch) -> float:
        """Images whose last code is a row of the batch: each ends in an EOI that is predicted."""
        if self._first_code is None:
            return 0.0
        return float((batch.text_weight * (batch.text_targets == self._special.eoi)).sum())

    def _flops(self, batch: PackedBatch) -> float:
        """There and back, at the pairs of positions that are seen."""
        channels, height, width = batch.latents.shape[1:]
        return training_flops(
            self.config.model,
            Work.of(batch),
            vocab_size=self._special.vocab_size,
            latent_shape=(channels, height, width),
            variance=self.config.objective.variance,
        )
