"""The engine: many requests advance together, one step at a time, each in whatever it is at.

    prompt  is read whole, once for all samples of it
    text    one token a step, until the row has ended or sampled BOI
    image   one denoising step (or one code) a step, in all branches of guidance
    clean   the image is read once more at t = 0, EOI behind it, and text goes on, which then sees it

What all rows read in a step is one ragged batch and one forward pass: tokens of some and noisy patches of others
go through the same products. Requests join and leave between steps. A request takes its pages when it joins, as
many as it can come to need, so what was begun is never turned out. Caps on tokens, images and context are hard. A
row's draws come from its own generator, so that company changes nothing but the last bits.

Where images are tokens, an image is drawn as codes, and codes come in no other place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from transfusion.model.cache import PagedCache
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.batch import Passed, StepBatch
from transfusion.sample.denoising import denoise
from transfusion.sample.drawing import CodeDrawing, LatentDrawing
from transfusion.sample.events import Ended, Event, ImagePreview, Result
from transfusion.sample.jobs import Admission, Job, Listener
from transfusion.sample.pages import PAGE_SIZE, Pages, pages_for
from transfusion.sample.rows import Request, Row, branches_for, room_for
from transfusion.sample.scores import TokenSampler
from transfusion.sample.stream import Decode

Watch = Callable[[], None]
"""Called at every step; raises to give up."""


def _ignore(_: int, __: Event) -> None:
    """For those who read the results of their jobs instead."""


@dataclass(slots=True)
class Counts:
    """What an engine has done since it was made."""

    steps: int = 0
    positions: int = 0
    """That passed the transformer."""
    rows: int = 0
    """Requests under way, summed over steps."""
    tokens: int = 0
    images: int = 0
    cancelled: int = 0


class Engine:
    """Steps through requests on one device. One thread steps; any may submit and cancel."""

    def __init__(
        self,
        model: TransfusionModel,
        config: PackageConfig,
        *,
        max_rows: int = 16,
        num_pages: int | None = None,
        max_step_positions: int = 8192,
        decode: Decode | None = None,
        in_buckets: bool = False,
    ) -> None:
        """Takes the memory of the cache.

        Args:
            max_rows: Requests under way at once.
            num_pages: Of the cache; when left out, as many as `max_rows` of the longest plain requests need.
            max_step_positions: Prompts join a step up to this many positions; the first of them always may.
            decode: Text of token ids; without it stop strings are not looked for, and no text is told of.
            in_buckets: A step's rows are padded to one of few numbers, so that what is compiled meets few shapes.
        """
        weight = next(model.parameters())
        if num_pages is None:
            image = pages_for(config.num_patches + 2)
            num_pages = max_rows * (pages_for(config.sequence_length) + 2 * image)
        self.model, self.config, self.device = model, config, weight.device
        self.cache = PagedCache.allocate(
            model.config, num_slots=num_pages * PAGE_SIZE, device=weight.device, dtype=weight.dtype
        )
        self.pages = Pages(num_pages)
        self.counts = Counts()
        self.max_rows, self.max_step_positions = max_rows, max_step_positions
        self._admission = Admission(
            config,
            pages=self.pages,
            max_rows=max_rows,
            max_step_positions=max_step_positions,
            decode=decode,
            device=weight.device,
        )
        self._active: list[Job] = []
        self.is_in_buckets = in_buckets
        self._tokens = TokenSampler(model, config)

    @property
    def num_waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._admission.waiting)

    @property
    def num_active(self) -> int:
        """Jobs under way."""
        return len(self._active)

    def submit(self, requests: Sequence[Request], listener: Listener = _ignore) -> list[Job]:
        """Queues requests; those with one and the same prompt object share what is read of it.

        Args:
            listener: Told what comes of each, by the thread that steps.

        Raises:
            ValueError: A prompt does not fit; none was taken.
        """
        return self._admission.add(requests, listener)

    def cancel(self, job: Job) -> None:
        """Gives a job up before the next step; its listener hears nothing more."""
        job.is_cancelled = True

    def abandon(self) -> list[Job]:
        """Gives all jobs up and returns them: for when a step has failed."""
        jobs = [*self._active, *self._admission.waiting]
        for job in jobs:
            job.is_cancelled = True
        self._drop_cancelled()
        return jobs

    @torch.inference_mode()
    def step(self) -> bool:
        """Advances every request by one; returns whether there was any."""
        self._drop_cancelled()
        batch = StepBatch(pad=self.config.special.pad, in_buckets=self.is_in_buckets)
        self._active.extend(self._admission.admit(batch, num_active=len(self._active)))
        rows = [job.row for job in self._active if job.row is not None]
        if not rows:
            return False
        self._plan(batch, rows)
        passed = batch.forward(self.model, self.cache) if batch.num_rows else None
        for job in self._active:
            if job.row is not None and job.row.state == "fork":
                job.prefix.fork(job.row, self.cache, passed)
        if passed is not None:
            self._advance_images(rows, passed)
            self._tokens.score_prompts(rows, passed.hidden)
        self.counts.steps += 1
        self.counts.positions += batch.num_rows
        self.counts.rows += len(rows)
        self._tokens.sample([row for row in rows if row.begin_text(passed)])
        self._leave()
        return True

    def _plan(self, batch: StepBatch, rows: Sequence[Row]) -> None:
        """Lays out what is read: those of like length side by side, for they attend together."""
        ordered = sorted(rows, key=lambda row: (row.drawing is not None, row.sequence.length))
        for plan in (lambda row: row.plan(batch, self.cache), lambda row: row.plan_guidance(batch)):
            for row in ordered:
                before = batch.num_rows
                plan(row)
                row.num_read += batch.num_rows - before

    def _advance_images(self, rows: Sequence[Row], passed: Passed) -> None:
        drawings = [row.drawing for row in rows if row.drawing is not None]
        if codes := [one for one in drawings if isinstance(one, CodeDrawing)]:
            self._tokens.sample_codes(codes, passed.hidden)
        if latents := [one for one in drawings if isinstance(one, LatentDrawing)]:
            denoise(self.model, self.config, latents, passed)
        for row in rows:
            drawing = row.drawing
            if isinstance(drawing, LatentDrawing) and (clean := drawing.preview) is not None:
                num_steps = row.params.num_inference_steps
                row.tell(ImagePreview(clean, row.num_images, drawing.step, num_steps))
            if drawing is not None and drawing.is_done:
                row.end_image()
                self.counts.images += 1

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._active if job.is_cancelled]:
            assert job.row is not None
            # The step in which it was to fork from its prompt has failed.
            if job.row.state == "fork":
                job.prefix.leave()
            job.row.close()
            self._active.remove(job)
            self.counts.cancelled += 1
        self.counts.cancelled += self._admission.drop_cancelled()

    def _leave(self) -> None:
        """Those who have ended give their pages back and are told so."""
        ended = [job for job in self._active if job.row is not None and job.row.state == "done"]
        self._active = [job for job in self._active if job not in ended]
        for job in ended:
            assert job.row is not None
            job.row.close()
            job.result = job.row.result
            self.counts.tokens += job.result.num_tokens
            if not job.is_cancelled:
                job.listener(job.index, Ended(job.result))


def generate(
    model: TransfusionModel,
    config: PackageConfig,
    requests: Sequence[Request],
    *,
    watch: Watch | None = None,
    decode: Decode | None = None,
    max_rows: int | None = None,
) -> list[Result]:
    """Answers requests together; results in their order.

    Args:
        watch: Called between steps; raises to give up all of them.
        decode: As `Engine` takes it.
        max_rows: Requests under way at once; all of them when left out.

    Raises:
        ValueError: A prompt does not fit.
    """
    if not requests:
        return []
    rows = max_rows or len(requests)
    needed = sorted(
        sum(map(pages_for, (room_for(one, config), *branches_for(one, config)))) for one in requests
    )
    engine = Engine(
        model,
        config,
        max_rows=rows,
        # A prompt that is shared is there once more.
        num_pages=sum(needed[-rows:]) + pages_for(config.sequence_length),
        decode=decode,
    )
    jobs = engine.submit(requests)
    while engine.step():
        if watch is not None:
            watch()
    return [job.result for job in jobs if job.result is not None]
