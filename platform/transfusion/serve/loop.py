"""Asking an engine from the event loop: requests in, events out.

A request joins at the next step. Whoever stops listening (gone, or out of time) gives up what was asked for, and
its slots are free at the next step. Where the steps are taken is a `Runner`'s: a thread of this process, or a
process of the engine's own.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transfusion.sample.events import (
    Begun,
    Ended,
    Event,
    Failed,
    ImageDrawn,
    ImagePreview,
    TextWritten,
)
from transfusion.sample.jobs import Listener
from transfusion.sample.rows import Request
from transfusion.serve.metrics import Metrics

Events = AsyncGenerator[tuple[int, Event], None]
"""(number of the request, what came of it), until all have ended or one has failed."""


MAX_FAILED_STEPS = 3
"""One after the other: what a device has come to once, like a fault of CUDA's, every step after it meets again."""


class QueueFullError(Exception):
    """More waits than may wait."""


class EngineGoneError(Exception):
    """The engine has died with what it was at; the replica will be started again."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of the engine did."""

    seconds: float
    rows: int
    """Requests that it advanced."""
    positions: int
    """That passed the transformer."""
    has_failed: bool = False
    """It raised, and what was under way was given up."""

    def failed_after(self, before: int) -> int:
        """Steps that failed one after the other up to this one, of which so many were before it."""
        return before + 1 if self.has_failed else 0


@runtime_checkable
class Runner(Protocol):
    """Takes the engine's steps while there is something to do."""

    @property
    def step_age_s(self) -> float:
        """For how long the step under way has been so; 0 between steps."""

    @property
    def failed_steps(self) -> int:
        """Steps that failed one after the other, up to the last that was taken."""

    @property
    def is_dead(self) -> bool:
        """Whether nobody steps any more, though somebody should."""

    def submit(self, requests: Sequence[Request], listener: Listener) -> Any:
        """Queues requests; returns what `cancel` is given. The listener is told on another thread."""

    def cancel(self, ticket: Any) -> None:
        """Gives up what has not ended of some requests, before the next step."""

    def close(self) -> None:
        """Stops stepping."""


class EngineLoop:
    """What callers share: the queue's limit, and what is counted of their waiting."""

    def __init__(self, runner: Runner, *, max_rows: int, max_queued: int, metrics: Metrics) -> None:
        """Shares a runner.

        Args:
            max_rows: Requests that its engine answers at once.
            max_queued: Requests that may wait beside them.
        """
        self.runner = runner
        self._max_unfinished = max_rows + max_queued
        self._metrics = metrics
        self._places = _Places(metrics)

    @property
    def num_queued(self) -> int:
        """Requests that wait."""
        return self._places.num_waiting

    def is_full(self, count: int) -> bool:
        """Whether so many more may not wait. Any one caller's requests may where none does, however many.

        What has a place in the engine does not wait, though it joins at the next step only.
        """
        places = self._places
        return places.num_waiting > 0 and places.num_unfinished + count > self._max_unfinished

    def check(self, *, step_timeout_s: float) -> None:
        """Raises RuntimeError when the engine has died, is at one step for too long, or fails at every one."""
        runner = self.runner
        if runner.is_dead:
            raise RuntimeError("the engine has died; the replica is started again")
        if runner.step_age_s > step_timeout_s:
            raise RuntimeError(
                f"a step of the engine takes {runner.step_age_s:.0f} s: must be at most "
                f"{step_timeout_s:g}; the replica is started again"
            )
        if runner.failed_steps >= MAX_FAILED_STEPS:
            raise RuntimeError(
                f"{runner.failed_steps} steps of the engine have failed one after the other: must be fewer "
                f"than {MAX_FAILED_STEPS}; its log says why, and the replica is started again"
            )

    @asynccontextmanager
    async def ask(self, requests: Sequence[Request]) -> AsyncIterator[Events]:
        """What comes of some requests, as it comes; leaving the block gives up the rest.

        Raises:
            QueueFullError: So many do not fit in the queue; none was taken.
        """
        if self.is_full(len(requests)):
            self._metrics.rejected(len(requests))
            raise QueueFullError
        here = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        waits = _Waits(self._metrics)
        taken = self._places.take(len(requests))

        def tell(index: int, event: Event) -> None:
            waits.seen(index, event)
            taken.seen(index, event)
            # The caller's loop may be gone with its server.
            if not isinstance(event, Begun) and not here.is_closed():
                here.call_soon_threadsafe(queue.put_nowait, (index, event))

        try:
            ticket = self.runner.submit(requests, tell)
        except BaseException:
            taken.give_back()
            raise
        try:
            yield _events(queue, len(requests))
        finally:
            unfinished = taken.give_back()
            if unfinished:
                self.runner.cancel(ticket)
            self._metrics.cancelled(unfinished)

    def close(self) -> None:
        """Stops stepping."""
        self.runner.close()


class _Places:
    """How many requests are unfinished, and how many of them wait.

    Counted from what is submitted and told: the engine's thread moves them between two looks at its lists.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.num_waiting = self.num_unfinished = 0
        self.lock = threading.Lock()
        self._metrics = metrics

    def take(self, count: int) -> "_Taken":
        """Places for one caller's requests."""
        with self.lock:
            self.add(waiting=count, unfinished=count)
        return _Taken(self, count)

    def add(self, *, waiting: int, unfinished: int) -> None:
        """So many more of each; with the lock held."""
        self.num_waiting += waiting
        self.num_unfinished += unfinished
        if waiting:
            self._metrics.queued(self.num_waiting)


class _Taken:
    """Places of one caller."""

    def __init__(self, places: _Places, count: int) -> None:
        self._places = places
        self._waiting, self._unfinished = set(range(count)), set(range(count))

    def seen(self, index: int, event: Event) -> None:
        """Something came of a request; on any thread."""
        with self._places.lock:
            if index in self._waiting:
                self._waiting.remove(index)
                self._places.add(waiting=-1, unfinished=0)
            if isinstance(event, Ended) and index in self._unfinished:
                self._unfinished.remove(index)
                self._places.add(waiting=0, unfinished=-1)

    def give_back(self) -> int:
        """Frees what is left; returns how many requests had not ended."""
        with self._places.lock:
            left = len(self._unfinished)
            self._places.add(waiting=-len(self._waiting), unfinished=-left)
            self._waiting, self._unfinished = set(), set()
        return left


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


def count_step(metrics: Metrics, step: Step | None) -> None:
    """Counts what a step did, where there was anything to do."""
    if step is not None:
        metrics.step(step.seconds)
        metrics.rows(step.rows)
        metrics.positions(step.positions)
