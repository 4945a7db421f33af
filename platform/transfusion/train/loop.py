"""The loop that every training stage runs on each of its ranks. Plain torch; `torch.distributed` is up.

What is trained is behind `Trainee`; what is here is order: update, validate, checkpoint, resume.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from transfusion.errors import TransfusionError
from transfusion.storage.store import Store
from transfusion.train.checkpoint import (
    CheckpointRecord,
    Checkpoints,
    StoredFile,
    new_attempt,
    parse_rows,
    remove_scratch,
    scratch_folder,
)
from transfusion.train.loop_config import LoopConfig
from transfusion.train.metrics import Metrics, Row, Tracker, finite
from transfusion.train.parallel import AveragedWeights, parameter_groups, reshard
from transfusion.train.schedule import ema_decay, learning_rate
from transfusion.train.trainee import Trainee

log = logging.getLogger(__name__)

PREVIEWS = "previews"
"""Folder of pictures made on the way, below the artifact's."""


class NotFiniteError(TransfusionError):
    """A loss or gradient that is not a number, with the place in the data; every rank raises it at once."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run keeps what it writes."""

    store: Store
    folder: str
    """Of the artifact, in the store."""
    fingerprint: str
    scratch: Path
    """A local folder for staging; used where this machine has it."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run at its last step."""

    rows: list[Row]
    averaged: AveragedWeights
    started_at: int
    """The step that this attempt resumed from."""


Tell = Callable[[int, Mapping[str, str]], None]
"""Told the number of finished steps and what to show, on rank 0."""


def fit(
    trainee: Trainee,
    *,
    place: Place,
    tell: Tell,
    tracker: Callable[[], Tracker | None] = lambda: None,
) -> Finished:
    """Trains to the last step, from the newest whole checkpoint if there is one.

    Raises:
        NotFiniteError: A loss or gradient was not a number. The weights before that step stay in the
            last checkpoint.
    """
    scratch = scratch_folder(place.scratch)
    try:
        return _fit(trainee, trainee.config, place, tell, tracker, scratch)
    finally:
        remove_scratch(scratch)


def _fit(
    trainee: Trainee,
    config: LoopConfig,
    place: Place,
    tell: Tell,
    tracker: Callable[[], Tracker | None],
    scratch: Path,
) -> Finished:
    model = trainee.model
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay=config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        # One kernel over all weights: a call a sharded weight costs four times as much on small models.
        fused=True,
    )
    averaged = AveragedWeights(model)
    checkpoints = Checkpoints(
        place.store,
        place.folder,
        fingerprint=place.fingerprint,
        keep=config.keep_checkpoints,
        scratch=scratch,
    )
    first = dist.get_rank() == 0
    metrics = Metrics(tracker=tracker() if first else None)
    attempt = new_attempt()
    stored: list[StoredFile] = []
    start = 0
    record = checkpoints.newest()
    if record is not None:
        _load(checkpoints, record, model, optimizer, averaged)
        start, stored = record.step, record.metrics
        if first:
            metrics.restore(parse_rows(checkpoints.rows(record)))
            log.info("resumed after step %d of %d", start, config.steps)
    tell(start, {})

    for step in range(start, config.steps):
        began = time.perf_counter()
        rate = learning_rate(
            step,
            peak=config.lr,
            lowest=min(config.min_lr, config.lr),
            warmup_steps=config.warmup_steps,
            total_steps=config.steps,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        result = trainee.forward_backward(step)
        computed = time.perf_counter()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        values = {**result.values, "grad_norm": grad_norm, "lr": rate}
        if not finite(values):
            wrong = ", ".join(
                f"{name} {value}" for name, value in values.items() if not math.isfinite(value)
            )
            raise NotFiniteError(
                f"step {step}: {wrong}: training stopped before this update was made; its data: "
                f"{trainee.describe(step)}; check these rows, or lower lr (peak {config.lr}) or raise "
                f"warmup_steps ({config.warmup_steps})"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update(decay=ema_decay(step, limit=config.ema_decay))
        ended = time.perf_counter()
        done = step + 1
        if first:
            timing = {
                "step_s": ended - began,
                "data_s": result.data_s,
                "compute_s": computed - began - result.data_s,
                "optimizer_s": ended - computed,
                **{f"{key}_per_s": n / (ended - began) for key, n in result.rates.items()},
            }
            metrics.add("train", step=done, values=values, timing=timing)
            rates = {f"{key}/s": f"{n / (ended - began):,.0f}" for key, n in result.rates.items()}
            tell(done, {**result.shown, **rates})
        last = done == config.steps
        if last or done % config.validate_every_steps == 0:
            _validate(trainee, averaged, metrics, step=done)
        if config.preview_every_steps and (last or done % config.preview_every_steps == 0):
            _preview(trainee, averaged, place, step=done)
        if last or done % config.checkpoint_every_steps == 0:
            stored = checkpoints.save(
                _state(model, optimizer, averaged),
                step=done,
                attempt=attempt,
                rows=metrics.take_unsaved(),
                earlier=stored,
            )
    return Finished(rows=metrics.rows, averaged=averaged, started_at=start)


def _validate(trainee: Trainee, averaged: AveragedWeights, metrics: Metrics, *, step: int) -> None:
    """Raw and averaged weights on the same held-out data."""
    began = time.perf_counter()
    trainee.model.eval()
    values = dict(trainee.validate())
    reshard(trainee.model)
    averaged.exchange()
    values |= {f"ema_{name}": value for name, value in trainee.validate().items()}
    reshard(trainee.model)
    averaged.exchange()
    trainee.model.train()
    if dist.get_rank() == 0 and values:
        timing = {"validation_s": time.perf_counter() - began}
        metrics.add("validation", step=step, values=values, timing=timing)


def _preview(trainee: Trainee, averaged: AveragedWeights, place: Place, *, step: int) -> None:
    shown = trainee.preview(averaged)
    if shown is not None:
        name = f"{place.folder}/{PREVIEWS}/step-{step:06d}"
        place.store.write(f"{name}.json", shown.about_bytes())
        place.store.write(f"{name}.png", shown.png)


def _state(
    model: nn.Module, optimizer: torch.optim.Optimizer, averaged: AveragedWeights
) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "average": averaged.weights,
    }


def _load(
    checkpoints: Checkpoints,
    record: CheckpointRecord,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedWeights,
) -> None:
    state = _state(model, optimizer, averaged)
    checkpoints.load(state, record)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
