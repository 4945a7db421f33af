"""Which documents go into which sequence: a pure function of their lengths, a seed and a few constants.

Sequences are made in the order of training (step, lane, slot). A ledger counts the positions that each stream
has had; whatever is furthest behind its weight comes next, so the ratio holds over any run of sequences to
within a document. Documents with images are kept whole and come first; text fills what is left and is the
only thing that is cut, at the end of a sequence. Making more steps leaves the earlier ones as they were.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from transfusion.sequence.order import LOOK_AHEAD, Ahead, Cursor, Epochs, Stream


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Constants of a plan."""

    sequence_length: int
    sequences_per_micro_batch: int
    lanes: int
    image_slots: int
    """Images of a micro-batch at most."""
    text_rows: int
    """Text targets of a micro-batch at most."""


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


def pack(
    streams: Sequence[Stream],
    shape: Shape,
    *,
    seed: int,
    window: int,
    num_steps: int,
    steps_per_block: int,
) -> Iterator[PackedSteps]:
    """Plans a run, a block of steps at a time.

    Args:
        window: Documents that a lane shuffles at a time, in whole runs.
    """
    assert streams
    assert all(
        stream.splittable or stream.lengths.max() <= shape.sequence_length for stream in streams
    )
    packer = _Packer(streams, shape, seed=seed, window=window)
    for first in range(0, num_steps, steps_per_block):
        count = min(steps_per_block, num_steps - first)
        for _ in range(count * shape.lanes):
            packer.micro_batch()
        yield packer.take(first, count)


def constants(
    streams: Sequence[Stream], *, sequence_length: int, sequences_per_micro_batch: int
) -> tuple[int, int]:
    """Image slots and text rows of a micro-batch: near their means, from the documents alone.

    Every slot that stays empty costs the model as much as an image. What does not fit is planned later, and
    the ledger makes up for it; so the slack is one standard deviation where text can fill the place, and three
    where the place would stay empty.
    """
    capacity = sequence_length * sequences_per_micro_batch
    spread = 1.0 if any(stream.splittable for stream in streams) else 3.0
    images = rows = 0.0
    slack_images = slack_rows = 0.0
    for stream in streams:
        mean_length = stream.positions / len(stream.lengths)
        share = stream.weight * capacity
        for values, is_rows in ((stream.images, False), (stream.targets, True)):
            rate = values.sum(dtype=np.int64) / stream.positions
            residual = values - rate * stream.lengths
            deviation = float(np.sqrt(share * np.mean(residual**2) / mean_length))
            if is_rows:
                rows += share * rate
                # A piece of text has a target at every position but the last, whatever the whole had.
                slack_rows += 0.0 if stream.splittable else spread * deviation + 2 * mean_length
            else:
                images += share * rate
                slack_images += spread * deviation + float(stream.images.mean())
    if images > 0:
        images = max(images + slack_images, max(int(stream.images.max()) for stream in streams))
    rows = min(rows + slack_rows + sequences_per_micro_batch, capacity)
    return int(np.ceil(images)), min(-(-int(np.ceil(rows)) // 8) * 8, capacity)


class _Packer:
    """The state of planning: a cursor for each lane and stream, and the ledger that all lanes share."""

    def __init__(self, streams: Sequence[Stream], shape: Shape, *, seed: int, window: int) -> None:
        self._shape = shape
        self._weights = [stream.weight for stream in streams]
        self._drawn = [0] * len(streams)
        self._planned = 0
        self._whole = [i for i, stream in enumerate(streams) if not stream.splittable]
        self._text = [i for i, stream in enumerate(streams) if stream.splittable]
        self._shortest = [int(stream.lengths.min()) for stream in streams]
        epochs = [
            Epochs(stream, i, lanes=shape.lanes, seed=seed) for i, stream in enumerate(streams)
        ]
        self._cursors = [
            [
                Cursor(stream, epochs[i], i, lane, seed=seed, window=window)
                for i, stream in enumerate(streams)
            ]
            for lane in range(shape.lanes)
        ]
        self._lane = 0
        self._slots = self._rows = 0
        self._counts, self._where, self._what = array("q"), array("Q"), array("Q")

    def take(self, first_step: int, num_steps: int) -> PackedSteps:
        """What was planned since the last call."""
        where = np.frombuffer(self._where, np.uint64).copy()
        what = np.frombuffer(self._what, np.uint64).copy()
        counts = np.frombuffer(self._counts, np.int64).copy()
        self._counts, self._where, self._what = array("q"), array("Q"), array("Q")
        return PackedSteps(
            first_step=first_step,
            num_steps=num_steps,
            counts=counts,
            stream=_bits(where, 0, 8),
            document=_bits(where, 8, 48),
            start=_bits(what, 0, 28),
            length=_bits(what, 28, 20),
            epoch=_bits(what, 48, 16),
        )

    def micro_batch(self) -> None:
        """Plans the sequences of the next lane."""
        self._slots, self._rows = self._shape.image_slots, self._shape.text_rows
        cursors = self._cursors[self._lane]
        for _ in range(self._shape.sequences_per_micro_batch):
            before = len(self._where)
            self._planned += self._shape.sequence_length
            remaining = self._place_whole(cursors, self._shape.sequence_length)
            self._fill_with_text(cursors, remaining)
            self._counts.append(len(self._where) - before)
        self._lane = (self._lane + 1) % self._shape.lanes

    def _place_whole(self, cursors: list[Cursor], remaining: int) -> int:
        """Documents in their order while their stream is behind; at the close those that fit best."""
        open_streams = list(self._whole)
        while open_streams and remaining:
            i = max(open_streams, key=self._deficit)
            deficit = self._deficit(i)
            ahead = cursors[i].fill(cursors[i].look_ahead)
            first = ahead[0][0]
            if self._text and deficit < first / 2:
                break
            if remaining < 3 * first and (not self._text or deficit >= remaining):
                chosen = self._closing(ahead, remaining)
            else:
                chosen = self._first_that_fits(ahead, remaining)
            if not chosen:
                open_streams.remove(i)
                continue
            for at in chosen:
                remaining -= self._place(i, ahead[at])
            for at in sorted(chosen, reverse=True):
                del ahead[at]
        return remaining

    def _deficit(self, i: int) -> float:
        return self._weights[i] * self._planned - self._drawn[i]

    def _first_that_fits(self, ahead: list[Ahead], remaining: int) -> list[int]:
        slots, rows = self._slots, self._rows
        for at, (length, images, targets, _, _) in enumerate(ahead):
            if length <= remaining and images <= slots and targets <= rows:
                return [at]
        return []

    def _closing(self, ahead: list[Ahead], remaining: int) -> list[int]:
        """Up to three documents that leave the least of `remaining`; the oldest where it makes no difference."""
        slots, rows = self._slots, self._rows
        by_length: dict[int, int] = {}
        for at, (length, images, targets, _, _) in enumerate(ahead[:LOOK_AHEAD]):
            if images <= slots and targets <= rows:
                by_length.setdefault(length, at)
        best: tuple[int, list[int]] = (0, [])
        for length, at in by_length.items():
            if length > remaining:
                continue
            if length == remaining:
                return [at]
            if length > best[0]:
                best = (length, [at])
            other = by_length.get(remaining - length)
            if other is not None and other != at and self._allowed(ahead, [at, other]):
                return [at, other]
        return self._triple(ahead, by_length, remaining, best)

    def _triple(
        self,
        ahead: list[Ahead],
        by_length: dict[int, int],
        remaining: int,
        best: tuple[int, list[int]],
    ) -> list[int]:
        lengths = sorted(by_length)
        for first in lengths[:16]:
            for second in lengths:
                total = first + second
                if second == first or total > remaining:
                    continue
                pair = [by_length[first], by_length[second]]
                if total > best[0] and self._allowed(ahead, pair):
                    best = (total, pair)
                third = by_length.get(remaining - total)
                if third is not None and third not in pair:
                    triple = [*pair, third]
                    if self._allowed(ahead, triple):
                        return triple
        return best[1]

    def _allowed(self, ahead: list[Ahead], chosen: list[int]) -> bool:
        return (
            sum(ahead[at][1] for at in chosen) <= self._slots
            and sum(ahead[at][2] for at in chosen) <= self._rows
        )

    def _fill_with_text(self, cursors: list[Cursor], remaining: int) -> None:
        while remaining and self._text:
            i = max(self._text, key=self._deficit)
            cursor = cursors[i]
            document, start = cursor.pending or (cursor.fill(1)[0], 0)
            if cursor.pending is None:
                del cursor.ahead[0]
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
        self._drawn[i] += length
        self._where.append(index << 8 | i)
        self._what.append((epoch & 0xFFFF) << 48 | length << 28 | start)
        return length


def _bits(words: UInt64[np.ndarray, " r"], first: int, count: int) -> Int64[np.ndarray, " r"]:
    return ((words >> np.uint64(first)) & np.uint64((1 << count) - 1)).astype(np.int64)
