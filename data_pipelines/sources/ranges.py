"""A seekable stream over something that is fetched by spans of bytes."""

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

BLOCK_BYTES = 8 * 2**20
"""What is fetched at once; two such blocks are held, one of them still arriving."""

Fetch = Callable[[int, int], bytes]
"""The bytes from a start up to an end."""


def ranged(fetch: Fetch, size_bytes: int, *, name: str) -> io.BufferedReader:
    """The stream; `fetch` is called from a second thread too, one call at a time ahead of the reader."""
    return io.BufferedReader(_Ranges(fetch, size_bytes, name=name), buffer_size=1 << 16)


class _Ranges(io.RawIOBase):
    """A file by blocks; while one is read, the next one arrives."""

    mode = "rb"

    def __init__(self, fetch: Fetch, size_bytes: int, *, name: str) -> None:
        self.name = name
        self._fetch_span, self._size = fetch, size_bytes
        self._at = 0
        self._start, self._block = 0, b""
        self._next: tuple[int, Future[bytes]] | None = None
        self._thread = ThreadPoolExecutor(1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size or not len(buffer):
            return 0
        if not self._start <= self._at < self._start + len(self._block):
            self._block = self._take(self._at)
            self._start = self._at
        offset = self._at - self._start
        count = min(len(buffer), len(self._block) - offset)
        buffer[:count] = self._block[offset : offset + count]
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._block, self._next = b"", None
        super().close()

    def _take(self, start: int) -> bytes:
        """The block that starts here; it was fetched ahead where the file is read from front to back."""
        if self._next is not None and self._next[0] == start:
            block = self._next[1].result()
        else:
            block = self._fetch(start)
        onwards = start == self._start + len(self._block)
        following = start + len(block)
        self._next = None
        if onwards and following < self._size:
            self._next = (following, self._thread.submit(self._fetch, following))
        return block

    def _fetch(self, start: int) -> bytes:
        return self._fetch_span(start, min(start + BLOCK_BYTES, self._size))
