"""Running an iterator in a thread of its own, a little ahead of who reads it."""

import contextlib
import queue
import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items in their order, at most `count` of them made before they are asked for.

    The thread starts at once and ends with the items, or when this is left as a context. What the iterator raises
    is raised here in its turn.
    """

    def __init__(self, items: Iterable[T], count: int) -> None:
        self._made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(count)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True)
        self._thread.start()

    def __iter__(self) -> "Ahead[T]":
        return self

    def __next__(self) -> T:
        found = self._made.get()
        if isinstance(found, tuple):
            return found[0]
        self._made.put(found)  # whoever asks again is told the same
        raise found or StopIteration

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._made.get(timeout=0.01)

    def _fill(self, items: Iterable[T]) -> None:
        try:
            with contextlib.closing(item for item in items) as running:
                for item in running:
                    self._made.put((item,))
                    if self._left.is_set():
                        return
        except BaseException as error:
            self._made.put(error)
        else:
            self._made.put(None)
