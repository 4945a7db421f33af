"""Random draws that are a pure function of their name, on any machine and any library version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of draws keyed by (purpose, seed, index): counter-based, so no draw depends on another image."""

    def __init__(self, purpose: str, seed: int, index: int) -> None:
        self._stream = hashlib.shake_256(f"{purpose}/{seed}/{index}".encode("ascii"))
        self._buffer = self._stream.digest(512)
        self._used = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A real in [low, high)."""
        if self._used == len(self._buffer):
            self._buffer = self._stream.digest(2 * len(self._buffer))
        word = int.from_bytes(self._buffer[self._used : self._used + 8], "big")
        self._used += 8
        return low + (high - low) * ((word >> 11) * 2.0**-53)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, each as likely."""
        return items[int(self.uniform() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, as likely as its weight; at least one weight is above 0."""
        target = self.uniform() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            target -= weight
            if target < 0:
                return item
        return max(zip(items, weights, strict=True), key=lambda pair: pair[1])[0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = int(self.uniform() * (last + 1))
            order[last], order[other] = order[other], order[last]
        return order
