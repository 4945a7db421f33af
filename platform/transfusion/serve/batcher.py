"""Requests that arrive while others are answered are answered together, on one thread beside the event loop.

A batch takes what waits at the moment the one before it ends: alone when there is no load, full under load,
without a timer. Samples that nobody waits for any more are dropped, and stop the batch when none is left.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sample

Answer = Callable[[Sequence[Request], Callable[[], None]], list[Sample]]
"""Answers requests together; the second argument is called between steps and raises to give up."""


class QueueFullError(Exception):
    """More waits than may wait."""


class AbandonedError(Exception):
    """Nobody waits for any sample of the batch."""


@dataclass(slots=True)
class _Job:
    request: Request
    kind: Hashable
    future: asyncio.Future[Sample] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher:
    """A queue, and a task that empties it while there is something in it."""

    def __init__(
        self, answer: Answer, *, max_batch_size: int, max_queued: int, threads: int = 1
    ) -> None:
        self._answer = answer
        self._max_batch_size = max_batch_size
        self._max_queued = max_queued
        self._waiting: deque[_Job] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="sampler", initializer=torch.set_num_threads, initargs=(threads,)
        )

    @property
    def num_queued(self) -> int:
        """Samples that wait."""
        return len(self._waiting)

    async def submit(self, requests: Sequence[Request]) -> list[Sample]:
        """Answers to all of a caller's requests. Cancelling gives them up.

        Raises:
            QueueFullError: So many do not fit in the queue; none was taken.
        """
        # An idle server takes any one caller's requests, however many.
        if self._waiting and len(self._waiting) + len(requests) > self._max_queued:
            raise QueueFullError
        jobs = [_Job(request, _kind(request)) for request in requests]
        self._waiting.extend(jobs)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            return list(await asyncio.gather(*(job.future for job in jobs)))
        finally:
            for job in jobs:
                job.future.cancel()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            requests = [job.request for job in batch]
            futures = [job.future for job in batch]

            def watch(futures: Sequence[asyncio.Future[Sample]] = tuple(futures)) -> None:
                # Reading a future's state from another thread is safe; setting it is not.
                if all(future.done() for future in futures):
                    raise AbandonedError

            try:
                samples = await loop.run_in_executor(self._thread, self._answer, requests, watch)
            except AbandonedError:
                continue
            except Exception as error:
                # Every caller of the batch gets it.
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, sample in zip(futures, samples, strict=True):
                if not future.done():
                    future.set_result(sample)

    def _take(self) -> list[_Job]:
        """The oldest sample, and those behind it that are of its kind."""
        alive = [job for job in self._waiting if not job.future.done()]
        batch = [job for job in alive if job.kind == alive[0].kind][: self._max_batch_size]
        taken = {id(job) for job in batch}
        self._waiting = deque(job for job in alive if id(job) not in taken)
        return batch


def _kind(request: Request) -> Hashable:
    """Samples of one kind take the same steps: text does not wait for images, nor few steps for many."""
    params = request.params
    if not params.image_at_once:
        return "text"
    return ("image", params.solver, params.num_inference_steps, params.guidance_scale)
