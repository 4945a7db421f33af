"""Batches that are made before they are asked for, in threads."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from transfusion.sequence.batch import PackedBatch

Place = tuple[int, int]
"""Step and lane."""


class Ahead:
    """Makes the next batches of the lanes that are asked for; as many at a time as their bytes allow.

    Reading and drawing release the interpreter, so threads of one process do work side by side.
    """

    def __init__(
        self,
        make: Callable[[int, int], PackedBatch],
        *,
        steps: int,
        threads: int,
        max_steps: int,
        max_batches: int,
    ) -> None:
        """Takes what makes a batch, and how many steps there are.

        Args:
            max_steps: How far ahead of the step that was asked for.
            max_batches: How many may wait at a time; the next one of each lane always may.
        """
        self._make, self._steps = make, steps
        self._max_steps, self._max_batches = max_steps, max_batches
        self._waiting: dict[Place, Future[PackedBatch]] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ingest")

    def take(self, step: int, lane: int) -> PackedBatch:
        """The batch of that place; those that follow it in its lane are begun."""
        made = self._waiting.pop((step, lane), None)
        self._drop(step, lane)
        if made is None:
            made = self._threads.submit(self._make, step, lane)
        for next_step in range(step + 1, min(step + self._max_steps + 1, self._steps)):
            room = next_step == step + 1 or len(self._waiting) < self._max_batches
            if (next_step, lane) not in self._waiting and room:
                begun = self._threads.submit(self._make, next_step, lane)
                self._waiting[next_step, lane] = begun
        return made.result()

    def _drop(self, step: int, lane: int) -> None:
        """Forgets what will not be asked for next: another step of this lane, a lane that was left."""
        last = step + self._max_steps
        for place in list(self._waiting):
            of_lane = place[1] == lane and not step < place[0] <= last
            if of_lane or not step - 1 <= place[0] <= last + 1:
                self._waiting.pop(place).cancel()
