"""An object as a file of which only what is asked for is fetched."""

import io

from transfusion.storage.store import Store


class RangeFile(io.RawIOBase):
    """Reads an object by ranges, each a request: for readers that know what they want, as those of Parquet do."""

    def __init__(self, store: Store, path: str, *, size_bytes: int) -> None:
        super().__init__()
        self._store, self._path, self._size = store, path, size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        data = self._store.read_range(self._path, self._at, end)
        self._at = end
        return data
