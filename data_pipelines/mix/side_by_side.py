"""Work on many items in a few threads, results in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 8
"""Shards whose index is read at the same time; twice as many wait at most for their turn."""

A = TypeVar("A")
B = TypeVar("B")


def in_threads(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Results in order, worked on in threads; few wait, however many items there are."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(READERS) as threads:
        for item in items:
            waiting.append(threads.submit(work, item))
            if len(waiting) > 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
