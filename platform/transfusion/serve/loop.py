"""The engine on a thread of its own beside the event loop: requests in, events out.

A request joins at the next step. Whoever stops listening (gone, or out of time) gives up what was asked for, and
its slots are free at the next step. A step that fails is told to all that were under way, and the loop goes on.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch

from transfusion.sample.engine import Engine
from transfusion.sample.events import (
    Begun,
    Ended,
    Event,
    Failed,
    ImageDrawn,
    ImagePreview,
    TextWritten,
)
from transfusion.sample.rows import Request
from transfusion.serve.metrics import Metrics

logger = logging.getLogger("transfusion.serve")

Events = AsyncIterator[tuple[int, Event]]
"""(number of the request, what came of it), until all have ended or one has failed."""


class QueueFullError(Exception):
    """More waits than may wait."""


class EngineLoop:
    """Steps while there is something to do."""

    def __init__(self, engine: Engine, *, max_queued: int, threads: int, metrics: Metrics) -> None:
        self.engine = engine
        self._max_queued = max_queued
        self._threads = threads
        self._metrics = metrics
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._step_began: float | None = None

    @property
    def num_queued(self) -> int:
        """Requests that wait."""
        return self.engine.num_waiting

    def is_full(self, count: int) -> bool:
        """Whether so many more may not wait. Any one caller's requests may where none does, however many."""
        waiting = self.engine.num_waiting
        return waiting > 0 and waiting + count > self._max_queued

    @asynccontextmanager
    async def ask(self, requests: Sequence[Request]) -> AsyncIterator[Events]:
        """What comes of some requests, as it comes; leaving the block gives up the rest.

        Raises:
            QueueFullError: So many do not fit in the queue; none was taken.
        """
        if self.is_full(len(requests)):
            self._metrics.rejected(len(requests))
            raise QueueFullError
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        here = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        waits = _Waits(self._metrics)

        def tell(index: int, event: Event) -> None:
            waits.seen(index, event)
            # The caller's loop may be gone with its server.
            if not isinstance(event, Begun) and not here.is_closed():
                here.call_soon_threadsafe(queue.put_nowait, (index, event))

        jobs = self.engine.submit(requests, tell)
        self._wake.set()
        try:
            yield _events(queue, len(requests))
        finally:
            unfinished = [job for job in jobs if job.result is None]
            for job in unfinished:
                self.engine.cancel(job)
            self._metrics.cancelled(len(unfinished))

    def close(self) -> None:
        """Stops stepping."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    @property
    def step_age_s(self) -> float:
        """For how long the step under way has been so; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.perf_counter() - began

    @property
    def is_dead(self) -> bool:
        """Whether nobody steps any more, though somebody should."""
        return self._thread is not None and not self._closing and not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        self._metrics.max_rows(self.engine.max_rows)
        counts = self.engine.counts
        while True:
            # In this order no wake-up is lost between the two.
            self._wake.clear()
            if self._closing:
                return
            rows, positions = counts.rows, counts.positions
            self._step_began = began = time.perf_counter()
            try:
                worked = self.engine.step()
            except Exception as error:
                logger.exception("a step of the engine failed")
                worked = True
                for job in self.engine.abandon():
                    job.listener(job.index, Failed(error))
            self._step_began = None
            self._metrics.queued(self.engine.num_waiting)
            if worked:
                self._metrics.step(time.perf_counter() - began)
                self._metrics.rows(counts.rows - rows)
                self._metrics.positions(counts.positions - positions)
            else:
                self._wake.wait()


async def _events(queue: asyncio.Queue[tuple[int, Event]], count: int) -> Events:
    while count:
        index, event = await queue.get()
        if isinstance(event, Failed):
            raise event.error
        yield index, event
        count -= isinstance(event, Ended)


class _Waits:
    """How long a caller's requests waited: to join, and for the first that is told of them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._seen: set[int] = set()

    def seen(self, index: int, event: Event) -> None:
        """Something came of a request."""
        waited = time.perf_counter() - self._began
        if isinstance(event, Begun):
            self._metrics.queue(waited)
        elif index not in self._seen and isinstance(event, (TextWritten, ImagePreview, ImageDrawn)):
            self._seen.add(index)
            self._metrics.first(waited, "text" if isinstance(event, TextWritten) else "image")
