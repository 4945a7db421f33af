"""Which of the waiting documents go into the place that is left."""

from typing import NamedTuple

from transfusion.sequence.order import LOOK_AHEAD, Ahead


class Room(NamedTuple):
    """What is left: positions of the sequence, image slots and text rows of the micro-batch."""

    positions: int
    slots: int
    rows: int


def first_that_fits(ahead: list[Ahead], room: Room) -> list[int]:
    """The place in `ahead` of the first document that fits, or nothing."""
    positions, slots, rows = room
    for at, (length, images, targets, _, _) in enumerate(ahead):
        if length <= positions and images <= slots and targets <= rows:
            return [at]
    return []


def closing(ahead: list[Ahead], room: Room) -> list[int]:
    """Up to three documents that leave the least of the positions; the oldest where it makes no difference."""
    remaining, slots, rows = room
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
        if other is not None and other != at and _allowed(ahead, [at, other], room):
            return [at, other]
    return _triple(ahead, by_length, room, best)


def _triple(
    ahead: list[Ahead], by_length: dict[int, int], room: Room, best: tuple[int, list[int]]
) -> list[int]:
    lengths = sorted(by_length)
    for first in lengths[:16]:
        for second in lengths:
            total = first + second
            if second == first or total > room.positions:
                continue
            pair = [by_length[first], by_length[second]]
            if total > best[0] and _allowed(ahead, pair, room):
                best = (total, pair)
            third = by_length.get(room.positions - total)
            if third is not None and third not in pair:
                triple = [*pair, third]
                if _allowed(ahead, triple, room):
                    return triple
    return best[1]


def _allowed(ahead: list[Ahead], chosen: list[int], room: Room) -> bool:
    return (
        sum(ahead[at][1] for at in chosen) <= room.slots
        and sum(ahead[at][2] for at in chosen) <= room.rows
    )
