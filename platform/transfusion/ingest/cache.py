"""What was read of the shards and is kept for as long as there is room; shared by threads."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


class Cache:
    """Keeps what was used last, up to a number of bytes.

    Threads load different things side by side; what two ask for at once is loaded once. What is being loaded
    is not yet counted: at most one thing a thread comes on top of the bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.loads = self.reloads = 0
        """How often something was read, and how often again what one of eight times the size would have kept."""
        self._gone: dict[Hashable, None] = {}
        self._kept: dict[Hashable, _Kept] = {}
        self._loading: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()
        self._uses = 0

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """What is kept under the key, or what `load` brings with its size in bytes."""
        kept = self._kept.get(key)
        if kept is not None:
            # Without the lock, for a batch asks hundreds of times: two uses that count as one do no harm.
            self._uses += 1
            kept.used = self._uses
            return kept.value
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                return kept.value
            others = self._loading.get(key)
            if others is None:
                own = self._loading[key] = Future()
        if others is not None:
            return others.result()
        try:
            value, size = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
            self._keep(key, value, size)
        own.set_result(value)
        return value

    def _keep(self, key: Hashable, value: Any, size: int) -> None:
        self._uses += 1
        self._kept[key] = _Kept(value, size, self._uses)
        self.bytes += size
        self.loads += 1
        if key in self._gone:
            self.reloads += 1
            del self._gone[key]
        if self.bytes <= self.max_bytes:
            return
        # The newest stays, whatever its size: it is about to be used.
        for oldest in sorted(self._kept, key=lambda kept: self._kept[kept].used)[:-1]:
            self.bytes -= self._kept.pop(oldest).size
            self._gone[oldest] = None
            while len(self._gone) > 7 * len(self._kept):
                del self._gone[next(iter(self._gone))]
            if self.bytes <= self.max_bytes:
                return


@dataclass(slots=True)
class _Kept:
    value: Any
    size: int
    used: int
    """Larger than that of everything used before."""
