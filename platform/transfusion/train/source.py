"""Where batches come from, and the thread that reads them ahead of the step. Plain torch."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

from transfusion.sequence.batch import PackedBatch

Answer = TypeVar("Answer")
Given = ParamSpec("Given")


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


class ReadAhead:
    """One thread touches the source: it reads the next step's batches while this one is computed."""

    def __init__(self, source: BatchSource, *, steps: int, pinned: bool = False) -> None:
        """Touches nothing yet.

        Args:
            pinned: Whether batches lie in memory that a GPU copies from while the host goes on.
        """
        self._source = source
        self._steps = steps
        self._pinned = pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._ahead: dict[int, Future[list[PackedBatch]]] = {}

    def take(self, step: int, owned: Sequence[int | None]) -> list[PackedBatch]:
        """This rank's batches of a step; asks for those of the next.

        Args:
            owned: Lanes of this rank; None for a micro-batch in which nothing counts.
        """

        def read(wanted: int) -> list[PackedBatch]:
            batches = [
                self._source.zero_batch()
                if lane is None
                else self._source.micro_batch(wanted, lane)
                for lane in owned
            ]
            return [batch.pin_memory() for batch in batches] if self._pinned else batches

        now = self._ahead.pop(step, None) or self._thread.submit(read, step)
        self._ahead.clear()
        batches = now.result()
        if step + 1 < self._steps:
            self._ahead[step + 1] = self._thread.submit(read, step + 1)
        return batches

    def ask(
        self, function: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs
    ) -> Answer:
        """What a method of the source says, called on the thread."""
        return self._thread.submit(function, *args, **kwargs).result()
