"""Which documents go into which sequence: a pure function of their lengths, a seed and a few constants.

Sequences are made in the order of training (step, lane, slot). A ledger counts the positions that each stream
has had; whatever is furthest behind its weight comes next, so the ratio holds over any run of sequences to
within a document. Documents with images are kept whole and come first; text fills what is left and is the
only thing that is cut, at the end of a sequence.

Weights change where a phase begins, and where a source is exhausted, whose weight the others then share; the
ledger begins anew with them. What comes later has no part in what came before: more steps, and phases behind
the last one, leave the earlier sequences as they were.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from transfusion.sequence.fitting import Room, closing, first_that_fits
from transfusion.sequence.ledger import Budget, Ledger, Phase, Stretch
from transfusion.sequence.order import Ahead, Cursor, Epochs, Stream
from transfusion.sequence.shape import Limits, Shape


@dataclass(frozen=True, kw_only=True)
class PackedSteps:
    """Sequences of consecutive steps, in the order step, lane, slot; references sequence after sequence."""

    first_step: int
    num_steps: int
    counts: Int64[np.ndarray, " s"]
    """References of each sequence."""
    stream: Int64[np.ndarray, " r"]
    document: Int64[np.ndarray, " r"]
    """Index within the stream."""
    start: Int64[np.ndarray, " r"]
    """First position of the document that is in this piece; 0 unless it was cut."""
    length: Int64[np.ndarray, " r"]
    epoch: Int64[np.ndarray, " r"]
    stretches: Sequence[Stretch]
    """That begin in these steps, numbered by sequences since the plan began."""
    ended: dict[int, int]
    """Sources that were exhausted in these steps, with the step."""


def pack(
    streams: Sequence[Stream],
    shape: Shape,
    *,
    seed: int,
    window: int,
    num_steps: int,
    steps_per_block: int,
    phases: Sequence[Phase] = (),
    budgets: Sequence[Budget | None] = (),
    fixed_limits: Limits | None = None,
) -> Iterator[PackedSteps]:
    """Plans a run, a block of steps at a time; the last is short, or empty, where a source ends the plan.

    Args:
        window: Documents that a lane shuffles at a time, in whole runs.
        phases: By step, the first at 0; one with the streams' own weights when left out.
        budgets: Of each source; None, or left out, goes on for ever.
        fixed_limits: Instead of those that follow from documents and weights.

    Raises:
        Exhausted: A source whose budget says so, or every source, is used up.
    """
    assert streams
    assert all(
        stream.splittable or stream.lengths.max() <= shape.sequence_length for stream in streams
    )
    phases = phases or [Phase(first_step=0, weights=[stream.weight for stream in streams])]
    ledger = Ledger(streams, shape, budgets, fixed_limits)
    packer = _Packer(streams, shape, ledger, seed=seed, window=window)
    begins = {phase.first_step: phase for phase in phases}
    for first in range(0, num_steps, steps_per_block):
        last = min(first + steps_per_block, num_steps)
        step = first
        while step < last and not ledger.ends:
            if step in begins:
                ledger.begin(begins[step])
            dry = packer.num_dry
            placed = packer.step(step)
            stuck = fixed_limits and packer.num_dry == dry and not ledger.is_outdated
            if placed or stuck:
                # Limits that were made for other documents may be too small for each of these.
                step += 1
            else:
                # What it was to hold turned out to be used up: another weight, or the end.
                packer.forget_step()
        yield packer.take(first, step - first)
        if ledger.ends:
            return


class _Packer:
    """The state of planning: a cursor for each lane and stream, and the ledger that all lanes share."""

    def __init__(
        self, streams: Sequence[Stream], shape: Shape, ledger: Ledger, *, seed: int, window: int
    ) -> None:
        self._shape = shape
        self.ledger = ledger
        self._splittable = [stream.splittable for stream in streams]
        epochs = [
            Epochs(stream, i, lanes=shape.lanes, seed=seed) for i, stream in enumerate(streams)
        ]
        self._cursors = [
            [
                Cursor(
                    stream,
                    epochs[i],
                    i,
                    lane,
                    seed=seed,
                    window=window,
                    max_epochs=ledger.max_epochs(i),
                )
                for i, stream in enumerate(streams)
            ]
            for lane in range(shape.lanes)
        ]
        self._dry: list[set[int]] = [set() for _ in range(shape.lanes)]
        """Streams that a lane has no more of."""
        self._whole: list[int] = []
        self._text: list[int] = []
        self._limits = Limits(0, 0)
        self._slots = self._rows = 0
        self._counts, self._where, self._what = array("q"), array("Q"), array("Q")

    def take(self, first_step: int, num_steps: int) -> PackedSteps:
        """What was planned since the last call."""
        where = np.frombuffer(self._where, np.uint64).copy()
        what = np.frombuffer(self._what, np.uint64).copy()
        counts = np.frombuffer(self._counts, np.int64).copy()
        self._counts, self._where, self._what = array("q"), array("Q"), array("Q")
        stretches, ended = self.ledger.take()
        return PackedSteps(
            first_step=first_step,
            num_steps=num_steps,
            counts=counts,
            stream=_bits(where, 0, 16),
            document=_bits(where, 16, 48),
            start=_bits(what, 0, 28),
            length=_bits(what, 28, 20),
            epoch=_bits(what, 48, 16),
            stretches=stretches,
            ended=ended,
        )

    def step(self, step: int) -> bool:
        """Plans the micro-batches of all lanes, and says whether there was anything left for them."""
        before = len(self._where)
        for cursors, dry in zip(self._cursors, self._dry, strict=True):
            if self.ledger.is_outdated:
                self._limits = self.ledger.weigh(step)
                there = self.ledger.taking_part
                self._whole = [i for i in there if not self._splittable[i]]
                self._text = [i for i in there if self._splittable[i]]
            self._slots, self._rows = self._limits
            for _ in range(self._shape.sequences_per_micro_batch):
                first = len(self._where)
                self.ledger.next_sequence()
                remaining = self._place_whole(cursors, dry, self._shape.sequence_length)
                self._fill_with_text(cursors, dry, remaining)
                self._counts.append(len(self._where) - first)
        return len(self._where) > before

    @property
    def num_dry(self) -> int:
        """Ends of streams that lanes have come to."""
        return sum(len(lane) for lane in self._dry)

    def forget_step(self) -> None:
        """Takes the last step back, in which nothing was placed."""
        sequences = self._shape.lanes * self._shape.sequences_per_micro_batch
        del self._counts[-sequences:]
        self.ledger.forget(sequences)

    def _run_dry(self, i: int, dry: set[int]) -> None:
        """A lane has come to the end of a stream; when all have, its weight goes to others."""
        dry.add(i)
        if all(i in lane for lane in self._dry):
            self.ledger.exhaust(i)

    def _place_whole(self, cursors: list[Cursor], dry: set[int], remaining: int) -> int:
        """Documents in their order while their stream is behind; at the close those that fit best."""
        open_streams = [i for i in self._whole if i not in dry]
        has_text = any(i not in dry for i in self._text)
        while open_streams and remaining:
            i = max(open_streams, key=self.ledger.deficit)
            deficit = self.ledger.deficit(i)
            ahead = cursors[i].fill(cursors[i].look_ahead)
            if not ahead:
                self._run_dry(i, dry)
                open_streams.remove(i)
                continue
            first = ahead[0][0]
            if has_text and deficit < first / 2:
                break
            room = Room(remaining, self._slots, self._rows)
            if remaining < 3 * first and (not has_text or deficit >= remaining):
                chosen = closing(ahead, room)
            else:
                chosen = first_that_fits(ahead, room)
            if not chosen:
                open_streams.remove(i)
                continue
            for at in chosen:
                remaining -= self._place(i, ahead[at])
            for at in sorted(chosen, reverse=True):
                del ahead[at]
        return remaining

    def _fill_with_text(self, cursors: list[Cursor], dry: set[int], remaining: int) -> None:
        open_streams = [i for i in self._text if i not in dry]
        while remaining and open_streams:
            i = max(open_streams, key=self.ledger.deficit)
            cursor = cursors[i]
            if cursor.pending is None:
                ahead = cursor.fill(1)
                if not ahead:
                    self._run_dry(i, dry)
                    open_streams.remove(i)
                    continue
                cursor.pending = (ahead.pop(0), 0)
            document, start = cursor.pending
            length = min(remaining, document[0] - start, self._rows + 1)
            cursor.pending = (document, start + length) if start + length < document[0] else None
            remaining -= self._place(i, document, start, length)
            if self._rows <= 0:
                break

    def _place(self, i: int, document: Ahead, start: int = 0, length: int | None = None) -> int:
        whole, images, targets, index, epoch = document
        if length is None:
            length = whole
        else:
            # A piece of text has a target at every position but its last.
            images, targets = 0, length - 1
        self._slots -= images
        self._rows -= targets
        self.ledger.draw(i, length)
        self._where.append(index << 16 | i)
        self._what.append((epoch & 0xFFFF) << 48 | length << 28 | start)
        return length


def _bits(words: UInt64[np.ndarray, " r"], first: int, count: int) -> Int64[np.ndarray, " r"]:
    return ((words >> np.uint64(first)) & np.uint64((1 << count) - 1)).astype(np.int64)
