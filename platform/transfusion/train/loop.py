"""The loop that every training stage runs on each of its ranks. Plain torch; `torch.distributed` is up.

What is trained is behind `Trainee`; what is here is order: update, validate, checkpoint, resume.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from transfusion.resources import TrainResources
from transfusion.storage.store import Store
from transfusion.train import faults
from transfusion.train.agreement import new_attempt
from transfusion.train.checkpoints.checkpoint import Checkpoints
from transfusion.train.checkpoints.saver import Saver
from transfusion.train.checkpoints.unfinished import keep_unsaved
from transfusion.train.clock import Clock
from transfusion.train.faults import NotFiniteError, Skips
from transfusion.train.metrics import Metrics, Row, Tracker, parse_rows, split_finite
from transfusion.train.on_spike import OnSpike
from transfusion.train.parallel import AveragedWeights, reshard
from transfusion.train.scratch import scratch_folder
from transfusion.train.state import TrainingState
from transfusion.train.stop import StoppedError
from transfusion.train.trainee import Trainee
from transfusion.train.watchdog import Watchdog

log = logging.getLogger(__name__)

PREVIEWS = "previews"
"""Folder of pictures made on the way, below the artifact's."""


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


Tell = Callable[[int, Mapping[str, str]], None]
"""Told the number of finished steps and what to show, on rank 0."""


def fit(
    trainee: Trainee,
    *,
    place: Place,
    tell: Tell,
    tracker: Callable[[], Tracker | None] = lambda: None,
    resources: TrainResources | None = None,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], bool] = lambda: False,
) -> Finished:
    """Trains to the last step, from the newest whole checkpoint if there is one.

    Args:
        stop: Whether this rank was asked to end; one is enough.
        save: Whether a checkpoint is wanted after this step; asked once a step, with one answer for all ranks.

    Raises:
        NotFiniteError: A loss or gradient was not a number, and the policy is to stop. The weights before
            that step stay in the last checkpoint.
        SpikeError: A loss stayed high, and there were rewinds enough or there is no checkpoint from before.
        StoppedError: The run was asked to end. All steps up to then are in a checkpoint.
    """
    resources = resources or TrainResources()
    attempt = new_attempt()
    hung = f"{place.folder}/{faults.FAULTS}/hang-{attempt}-rank-{dist.get_rank()}.txt"

    def keep_stacks(stacks: str) -> None:
        log.error("%s (rank %d)", stacks.partition("\n")[0], dist.get_rank())
        place.store.write(hung, stacks.encode())

    with (
        scratch_folder(place.scratch) as scratch,
        Watchdog(timeout_s=float(resources.hang_timeout_s), told=keep_stacks) as watchdog,
    ):
        run = _Run(trainee, place, Path(scratch), attempt, resources, tell, tracker)
        try:
            return run.to_end(watchdog.beat, stop, save)
        finally:
            run.close()


class _Run:
    """One attempt at a run."""

    def __init__(
        self,
        trainee: Trainee,
        place: Place,
        scratch: Path,
        attempt: str,
        resources: TrainResources,
        tell: Tell,
        tracker: Callable[[], Tracker | None],
    ) -> None:
        self._trainee = trainee
        self._config = trainee.config
        self._place = place
        self._attempt = attempt
        self._resources = resources
        self._tell = tell
        self._first = dist.get_rank() == 0
        self._state = TrainingState(trainee.model, trainee.config)
        self._checkpoints = Checkpoints(
            place.store,
            place.folder,
            fingerprint=place.fingerprint,
            keep=trainee.config.keep_checkpoints,
            scratch=scratch,
        )
        self._skips = Skips(trainee, trainee.config, store=place.store, folder=place.folder)
        self._spikes = OnSpike(trainee.config, self._state, self._checkpoints, self._skips)
        self._metrics = Metrics(tracker=tracker() if self._first else None)
        self._clock = Clock(next(trainee.model.parameters()).device)
        self._saver: Saver | None = None

    def to_end(
        self,
        beat: Callable[[], None],
        stop: Callable[[], bool],
        save: Callable[[], bool],
    ) -> Finished:
        """Every step that is left; see `fit`."""
        start, saver = self._resume()
        self._tell(start, {})
        self._clock.start()
        for step in range(start, self._config.steps):
            beat()
            stopping = self._step(step, saver, stop=stop())
            saver.check()
            beat()
            done = step + 1
            self._validate_and_preview(done)
            beat()
            last = done == self._config.steps
            due = save() or done % self._config.checkpoint_every_steps == 0
            if last or stopping or due or self._spikes.went_back_at(step):
                self._save(saver, done)
            if stopping and not last:
                saver.wait()
                self._metrics.saved()
                raise StoppedError(
                    f"training was asked to stop (SIGTERM) and stopped after step {done} of "
                    f"{self._config.steps}; the checkpoint of it is written: the same command goes on from there"
                )
        saver.wait()
        self._metrics.saved()
        lines = self._checkpoints.rows(saver.stored) if self._first else b""
        return Finished(rows=parse_rows(lines), averaged=self._state.averaged)

    def close(self) -> None:
        """Ends what runs in the background. Rows that no checkpoint holds are kept where a fault is the end."""
        self._metrics.close()
        place = self._place
        try:
            rows = self._metrics.not_known_saved()
            keep_unsaved(place.store, place.folder, attempt=self._attempt, rows=rows)
        except Exception as error:
            # What ended the attempt is what must be told.
            log.warning("rows behind the last checkpoint are lost: %s", error)
        if self._saver is not None:
            self._saver.close()

    def _resume(self) -> tuple[int, Saver]:
        """The step to begin with, and where to save."""
        record = self._checkpoints.newest()
        if record is not None:
            self._state.load(self._checkpoints, record)
            self._skips.steps = list(record.skipped)
            self._spikes.memory = record.spikes
            if self._first:
                log.info("resumed after step %d of %d", record.step, self._config.steps)
        self._saver = Saver(
            self._checkpoints,
            attempt=self._attempt,
            earlier=record.metrics if record else [],
            resources=self._resources,
        )
        return (record.step if record else 0), self._saver

    def _step(self, step: int, saver: Saver, *, stop: bool) -> bool:
        """One step and its row; returns whether any rank wants to end."""
        state = self._state
        began = time.perf_counter()
        result = self._trainee.forward_backward(step, stop=stop)
        computed = self._clock.computed()
        norm = state.clip()
        values = {**result.values, "lr": state.rate(step)}
        if "grad_norm" not in values:
            values["grad_norm"] = float(norm)
        numbers, wrong = split_finite(values)
        if not wrong:
            values |= self._spikes.update(step, values, before_going_back=saver.wait)
        else:
            self._skips.add(step, values)
            state.pass_over(step)
            values = {**numbers, "skipped": 1.0}
        if self._first:
            timing = self._clock.timing(result, began=began, computed=computed)
            self._metrics.add("train", step=step + 1, values=values, timing=timing)
            rates = {name: f"{timing[f'{name}_per_s']:,.0f}" for name in result.rates}
            shown = {f"{name}/s": rate for name, rate in rates.items()}
            if "mfu" in timing:
                shown["MFU"] = f"{timing['mfu']:.1%}"
            self._tell(step + 1, {**result.shown, **shown, **self._spikes.shown})
        return result.stop

    def _validate_and_preview(self, done: int) -> None:
        config = self._config
        last = done == config.steps
        if last or done % config.validate_every_steps == 0:
            with self._clock.beside("validation_s"):
                self._validate(done)
        if config.preview_every_steps and (last or done % config.preview_every_steps == 0):
            with self._clock.beside("preview_s"):
                self._preview(done)

    def _validate(self, done: int) -> None:
        """Raw and averaged weights on the same held-out data."""
        began = time.perf_counter()
        trainee, averaged = self._trainee, self._state.averaged
        trainee.model.eval()
        values = dict(trainee.validate())
        reshard(trainee.model)
        averaged.exchange()
        values |= {f"ema_{name}": value for name, value in trainee.validate().items()}
        reshard(trainee.model)
        averaged.exchange()
        trainee.model.train()
        values = self._numbers(done, values)
        if self._first and values:
            timing = {"validation_s": time.perf_counter() - began}
            self._metrics.add("validation", step=done, values=values, timing=timing)

    def _numbers(self, done: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those that are numbers; by the policy for steps, one that is none ends the run."""
        numbers, wrong = split_finite(values)
        if not wrong:
            return numbers
        told = f"validation after step {done}: {wrong}"
        if self._config.on_nan == "halt":
            raise NotFiniteError(
                f"{told}: training stopped, and no checkpoint is made of these weights; look at the held-out "
                f"documents, lower lr (peak {self._config.lr}), or set on_nan to skip to go on without the value"
            )
        if self._first:
            log.warning("%s: the value is left out", told)
        return numbers

    def _preview(self, done: int) -> None:
        shown = self._trainee.preview(self._state.averaged)
        if shown is not None:
            name = f"{self._place.folder}/{PREVIEWS}/step-{done:06d}"
            self._place.store.write(f"{name}.json", shown.about_bytes())
            self._place.store.write(f"{name}.png", shown.png)
            if shown.values:
                self._metrics.add("validation", step=done, values=shown.values)

    def _save(self, saver: Saver, done: int) -> None:
        with self._clock.beside("checkpoint_s"):
            wrong = self._state.not_finite()
            if wrong:
                raise NotFiniteError(
                    f"after step {done} {len(wrong)} weights hold NaN or infinity, such as {wrong[0]}: no "
                    "checkpoint is made of them, the one before stays; lower lr (peak "
                    f"{self._config.lr}) or raise warmup_steps ({self._config.warmup_steps})"
                )
            # Raises what the save before failed with, while its rows are still held.
            saver.wait()
            self._metrics.saved()
            saver.save(
                self._state.as_dict(),
                step=done,
                rows=self._metrics.take_unsaved(),
                skipped=self._skips.steps,
                spikes=self._spikes.memory,
                needed_from=self._spikes.needed_from(done),
            )
