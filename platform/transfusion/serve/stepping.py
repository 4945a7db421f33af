"""The engine's steps, one after the other while there is something to do, and on a thread beside its callers.

A step that fails is told to all that were under way, and the next one is taken.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch

from transfusion.sample.engine import Engine
from transfusion.sample.events import Failed
from transfusion.sample.jobs import Job, Listener
from transfusion.sample.params import params_with
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.serve.loop import Step, count_step
from transfusion.serve.metrics import Metrics
from transfusion.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger("transfusion.serve")

WARM_UP_STEPS = 3
"""The prompt, what opens an image, and one more: from there on steps have the same shapes."""


def take_step(engine: Engine) -> Step | None:
    """The next step; None where there was nothing to do."""
    counts = engine.counts
    rows, positions = counts.rows, counts.positions
    began, has_failed = time.perf_counter(), False
    try:
        if not engine.step():
            return None
    except Exception as error:
        has_failed = True
        logger.exception("a step of the engine failed")
        for job in engine.abandon():
            job.listener(job.index, Failed(error))
    seconds = time.perf_counter() - began
    return Step(seconds, counts.rows - rows, counts.positions - positions, has_failed)


def warm_up(engine: Engine, tokenizer: Tokenizer) -> None:
    """Takes the first steps of a picture and of a text, which grow what later ones find, and gives both up."""
    config = engine.config
    prompt = (TextPart(tuple(tokenizer.encode("a").tolist())),)
    jobs = engine.submit(
        [
            Request(
                prompt, params_with(config.sampling, schedule=config.schedule, modalities=(kind,))
            )
            for kind in ("image", "text")
        ]
    )
    for _ in range(WARM_UP_STEPS):
        engine.step()
    give_up(engine, jobs)
    engine.step()


def give_up(engine: Engine, jobs: Sequence[Job]) -> None:
    """Cancels those that have not ended."""
    for job in jobs:
        if job.result is None:
            engine.cancel(job)


class Stepper:
    """Takes steps on the thread that runs it, and sleeps where there is nothing to do; others wake and end it."""

    def __init__(self, engine: Engine, *, after: Callable[[Step | None], None]) -> None:
        """Takes none yet.

        Args:
            after: Called after each step, and before a sleep with None.
        """
        self.engine = engine
        self._after = after
        self._wake = threading.Event()
        self._closing = False
        self._step_began: float | None = None
        self.failed_steps = 0
        """One after the other, up to the last."""

    def run(self, threads: int) -> None:
        """Until it is closed.

        Args:
            threads: CPU threads of a step.
        """
        torch.set_num_threads(threads)
        while True:
            # In this order no wake-up is lost between the two.
            self._wake.clear()
            if self._closing:
                return
            self._step_began = time.perf_counter()
            step = take_step(self.engine)
            self._step_began = None
            self._after(step)
            if step is None:
                self._wake.wait()
            else:
                self.failed_steps = step.failed_after(self.failed_steps)

    def wake(self) -> None:
        """Something was submitted or given up."""
        self._wake.set()

    def close(self) -> None:
        """No further step begins."""
        self._closing = True
        self._wake.set()

    @property
    def is_closing(self) -> bool:
        """Whether it was told to end."""
        return self._closing

    @property
    def step_age_s(self) -> float:
        """For how long the step under way has been so; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.perf_counter() - began


class ThreadRunner:
    """A `Runner` on a thread of this process: the engine shares the interpreter with its callers."""

    def __init__(self, engine: Engine, *, threads: int, metrics: Metrics) -> None:
        self.engine = engine
        self._threads = threads
        metrics.max_rows(engine.max_rows)
        self._stepper = Stepper(engine, after=lambda step: count_step(metrics, step))
        self._thread: threading.Thread | None = None

    @property
    def step_age_s(self) -> float:
        """See `Runner`."""
        return self._stepper.step_age_s

    @property
    def failed_steps(self) -> int:
        """See `Runner`."""
        return self._stepper.failed_steps

    @property
    def is_dead(self) -> bool:
        """See `Runner`."""
        thread = self._thread
        return thread is not None and not self._stepper.is_closing and not thread.is_alive()

    def submit(self, requests: Sequence[Request], listener: Listener) -> list[Job]:
        """See `Runner`."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._stepper.run, args=(self._threads,), name="engine", daemon=True
            )
            self._thread.start()
        jobs = self.engine.submit(requests, listener)
        self._stepper.wake()
        return jobs

    def cancel(self, ticket: list[Job]) -> None:
        """See `Runner`."""
        give_up(self.engine, ticket)

    def close(self) -> None:
        """See `Runner`."""
        self._stepper.close()
        if self._thread is not None:
            self._thread.join(timeout=10)
