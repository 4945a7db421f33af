"""Reading a checkpoint's files from a store, each rank what it needs of them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader

from transfusion.storage.store import Store
from transfusion.train.record import StoredFile


class StoreReader(FileSystemReader):
    """DCP's reader, over files in a store: one is fetched when a rank comes to what it holds of its own.

    256 ranks that each fetched all files of a 7B's checkpoint would fetch 20 TB.
    """

    def __init__(self, store: Store, files: Sequence[StoredFile]) -> None:
        super().__init__("checkpoint")
        self.fs = _Fetched(store, {Path(file.path).name: file.path for file in files})


class _Fetched(FileSystem):
    """Names of DCP's files, as it reads them, to files in a store."""

    def __init__(self, store: Store, paths: dict[str, str]) -> None:
        self._store, self._paths = store, paths

    @contextmanager
    def create_stream(self, path: str | PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with self._store.local(self._paths[Path(path).name]).open(mode) as stream:
            assert isinstance(stream, io.IOBase)
            yield stream
