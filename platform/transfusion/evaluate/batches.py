"""Batches side by side, each on one CPU thread of its own.

Two threads inside an operation wait for each other at every operation, which on a busy machine costs more than
it gains, and another number of them flips last bits. Threads that each have their own batch do neither: how many
there are does not show in the result.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

Advance = Callable[[int], None]


@contextmanager
def one_thread_each(num_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers for batches; this thread's operations take one CPU thread as well until it is left."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            num_workers, initializer=torch.set_num_threads, initargs=(1,)
        ) as workers:
            yield workers
    finally:
        torch.set_num_threads(before)


def in_batches(
    workers: ThreadPoolExecutor,
    work: Callable[[Sequence[T]], Sequence[R]],
    items: Sequence[T],
    *,
    batch_size: int,
    advance: Advance,
) -> list[R]:
    """What `work` makes of the items, in their order."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    results: list[R] = []
    for batch, made in zip(batches, workers.map(work, batches), strict=True):
        results.extend(made)
        advance(len(batch))
    return results
