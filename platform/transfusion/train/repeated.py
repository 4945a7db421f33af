"""One batch again and again: a model and a loop that are right bring its loss near zero within a minute."""

from collections.abc import Sequence

from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.batch import PackedBatch


class RepeatedFirstStep:
    """A `BatchSource` whose every step is the first of the plan, with the same noise and timesteps."""

    def __init__(self, reader: MixtureReader) -> None:
        self._reader = reader
        self._batches: dict[int, PackedBatch] = {}

    @property
    def lanes(self) -> int:
        """Micro-batches of a step."""
        return self._reader.lanes

    @property
    def num_validation(self) -> int:
        """None: what is learned by heart says nothing of other data."""
        return 0

    def micro_batch(self, step: int, lane: int) -> PackedBatch:  # noqa: ARG002 the protocol's
        """The lane's batch of step 0."""
        if lane not in self._batches:
            self._batches[lane] = self._reader.micro_batch(0, lane)
        return self._batches[lane]

    def zero_batch(self) -> PackedBatch:
        """A micro-batch in which nothing counts."""
        return self._reader.zero_batch()

    def validation(self, index: int) -> PackedBatch:
        """There is none.

        Raises:
            IndexError: Always.
        """
        raise IndexError(index)

    def document_ids(self, step: int, lane: int) -> Sequence[str]:  # noqa: ARG002
        """Documents of step 0."""
        return self._reader.document_ids(0, lane)
