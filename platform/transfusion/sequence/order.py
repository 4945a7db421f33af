"""The order in which documents come: epoch after epoch, shuffled so that reads stay together.

The runs of documents that are stored in one place are put in a new order each epoch and dealt to the lanes in
equal shares; a lane shuffles what lies in a window of its share. Epochs go on for ever, unless their number is
given: then every lane comes to the end of its share, and no document came more often than that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

from transfusion.sequence.draws import Draws, uniform

LOOK_AHEAD = 128
"""Documents among which the one that fits best is looked for."""

RUN_LENGTH = 512
"""Documents that are read together: as many as a row group has rows."""

_ORDER_OF_RUNS, _ORDER_IN_WINDOW, _ORDER_OF_PAIR = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class PairOrder:
    """Which of the two comes first in a caption pair: drawn for each document and epoch."""

    seed: int
    caption_first: float
    """How often the caption does."""

    def image_first(
        self, identity: UInt64[np.ndarray, " d"], epoch: Int64[np.ndarray, " d"]
    ) -> Bool[np.ndarray, " d"]:
        """Of documents, each in an epoch; of a plan's epochs 16 bits are kept."""
        epochs = (epoch & 0xFFFF).astype(np.uint64)
        return uniform(self.seed, _ORDER_OF_PAIR, identity, epochs) >= self.caption_first


@dataclass(frozen=True, kw_only=True)
class Twins:
    """What pairs take more where their image comes first, because it is copied: positions, and an image slot."""

    order: PairOrder
    identity: UInt64[np.ndarray, " d"]
    copied: Bool[np.ndarray, " d"]
    """Pairs whose image is copied if it comes first."""
    positions: int

    def there(self, documents: Int64[np.ndarray, " w"], epoch: int) -> Bool[np.ndarray, " w"]:
        """Whether each of some documents has a twin in an epoch."""
        epochs = np.full(len(documents), epoch, np.int64)
        return self.copied[documents] & self.order.image_first(self.identity[documents], epochs)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Documents that are packed alike, in the order in which they are stored."""

    lengths: Int32[np.ndarray, " d"]
    """Positions, BOS and EOS included; those of `twins` not."""

    images: Int32[np.ndarray, " d"]
    """Image slots that it takes; those of `twins` not."""

    targets: Int32[np.ndarray, " d"]
    """Positions that have a text target."""

    run_starts: Int64[np.ndarray, " k"]
    """First document of each run that is stored in one place; the first is 0."""

    weight: float
    """Share of the positions that this stream is to have."""

    splittable: bool
    """Text only: may be cut at the end of a sequence."""

    source: int = 0
    """What it belongs to: streams of one source share a weight and a budget."""

    twins: Twins | None = None
    """What comes to the pairs among them, by epoch."""

    @property
    def positions(self) -> int:
        """Positions of all documents, of an epoch in the mean."""
        return round(
            sum(share * float(lengths.sum(dtype=np.int64)) for share, lengths, _ in self.outcomes)
        )

    @property
    def outcomes(self) -> list[tuple[float, Int32[np.ndarray, " d"], Int32[np.ndarray, " d"]]]:
        """Lengths and images as they may turn out, and how often they do."""
        if self.twins is None:
            return [(1.0, self.lengths, self.images)]
        often = self.twins.order.caption_first
        more = self.twins.copied.astype(np.int32)
        return [
            (often, self.lengths, self.images),
            (1 - often, self.lengths + more * np.int32(self.twins.positions), self.images + more),
        ]


Ahead = tuple[int, int, int, int, int]
"""Length, images, targets, index and epoch of a document that is waiting."""


class Epochs:
    """The order of a stream's documents in each epoch, by runs that are stored in one place, dealt to lanes."""

    def __init__(self, stream: Stream, index: int, *, lanes: int, seed: int) -> None:
        self.num_documents = len(stream.lengths)
        self.shared = self.num_documents < lanes
        """Too few to deal: every lane then takes all of them, in epochs of its own."""
        self.lanes, self._index = lanes, index
        self._starts, self._ends = _runs(stream, lanes)
        self._draws = Draws(seed, _ORDER_OF_RUNS)
        self._last: tuple[int, Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]] | None = None

    def share(self, lane: int, epoch: int) -> list[tuple[int, int]]:
        """Runs of documents, from and to, that a lane comes to in an epoch: all lanes get equally many."""
        if self._last is None or self._last[0] != epoch:
            order = self._draws.at(self._index, epoch).permutation(len(self._starts))
            ends = np.cumsum(self._ends[order] - self._starts[order])
            self._last = (epoch, order, ends)
        _, order, ends = self._last
        first, last = 0, self.num_documents
        if not self.shared:
            first = self.num_documents * lane // self.lanes
            last = self.num_documents * (lane + 1) // self.lanes
        found = []
        for place in range(int(np.searchsorted(ends, first, side="right")), len(order)):
            run, end = order[place], int(ends[place])
            start = end - int(self._ends[run] - self._starts[run])
            if start >= last:
                break
            offset = int(self._starts[run]) - start
            found.append((max(start, first) + offset, min(end, last) + offset))
        return found


class Cursor:
    """The documents of one stream as one lane comes to them: epoch after epoch, each in a new order."""

    def __init__(
        self,
        stream: Stream,
        epochs: Epochs,
        index: int,
        lane: int,
        *,
        seed: int,
        window: int,
        max_epochs: float | None = None,
    ) -> None:
        self.ahead: list[Ahead] = []
        self.pending: tuple[Ahead, int] | None = None
        """A document that was cut, and the position at which it goes on."""
        share = epochs.num_documents // (1 if epochs.shared else epochs.lanes)
        self.look_ahead = max(1, min(LOOK_AHEAD, share // 4))
        """Less for a small share, or an epoch would not be over when the next is under way."""
        self._stream, self._epochs, self._index, self._lane = stream, epochs, index, lane
        self._window, self._max_epochs = window, max_epochs
        self._draws = Draws(seed, _ORDER_IN_WINDOW)
        self._windows = self._draw()

    def fill(self, count: int) -> list[Ahead]:
        """The waiting documents, at least `count` of them; fewer, or none, where the last epoch ends."""
        while len(self.ahead) < count:
            portion = next(self._windows, None)
            if portion is None:
                break
            self.ahead += portion
        return self.ahead

    def _draw(self) -> Iterator[list[Ahead]]:
        epoch, stride = (self._lane, self._epochs.lanes) if self._epochs.shared else (0, 1)
        while self._max_epochs is None or epoch < self._max_epochs:
            waiting: list[tuple[int, int]] = []
            size = number = 0
            share = self._epochs.share(self._lane, epoch)
            if self._max_epochs is not None:
                share = _first_part(share, min(1.0, self._max_epochs - epoch))
            for place, (start, end) in enumerate(share):
                waiting.append((start, end))
                size += end - start
                if size >= self._window or place == len(share) - 1:
                    documents = np.concatenate([np.arange(*run) for run in waiting])
                    counters = (self._index, epoch, (self._lane << 32) + number)
                    self._draws.at(*counters).shuffle(documents)
                    yield from _portions(self._stream, documents, epoch)
                    waiting, size = [], 0
                    number += 1
            epoch += stride


def _first_part(runs: list[tuple[int, int]], fraction: float) -> list[tuple[int, int]]:
    """The runs up to a fraction of their documents."""
    left = round(fraction * sum(end - start for start, end in runs))
    found = []
    for start, end in runs:
        if left <= 0:
            break
        found.append((start, min(end, start + left)))
        left -= end - start
    return found


def _portions(
    stream: Stream, documents: Int64[np.ndarray, " w"], epoch: int
) -> Iterator[list[Ahead]]:
    # As Python integers: the packer looks at one document at a time. A portion, for these are large.
    for start in range(0, len(documents), LOOK_AHEAD):
        part = documents[start : start + LOOK_AHEAD]
        lengths, images = stream.lengths[part], stream.images[part]
        if stream.twins is not None:
            there = stream.twins.there(part, epoch)
            lengths, images = lengths + there * np.int32(stream.twins.positions), images + there
        yield [
            (length, slots, targets, document, epoch)
            for length, slots, targets, document in zip(
                lengths.tolist(),
                images.tolist(),
                stream.targets[part].tolist(),
                part.tolist(),
                strict=True,
            )
        ]


def _runs(stream: Stream, lanes: int) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """From and to of the runs: no longer than a row group, and several for every lane."""
    total = len(stream.lengths)
    longest = max(1, min(RUN_LENGTH, total // (4 * lanes)))
    stored_ends = [*stream.run_starts[1:].tolist(), total]
    starts = np.concatenate(
        [
            np.arange(start, end, longest)
            for start, end in zip(stream.run_starts.tolist(), stored_ends, strict=True)
        ]
    )
    return starts, np.append(starts[1:], total)
