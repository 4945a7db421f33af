"""Reading a checkpoint's files from a store, each rank what it needs of them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store, sha256_file
from transfusion.train.checkpoints.record import StoredFile


class StoreReader(FileSystemReader):
    """DCP's reader, over files in a store: one is fetched when a rank comes to what it holds of its own.

    256 ranks that each fetched all files of a 7B's checkpoint would fetch 20 TB.
    """

    def __init__(self, store: Store, files: Sequence[StoredFile], *, checked: set[str]) -> None:
        """Reads nothing yet.

        Args:
            checked: Files whose bytes are known to be right here; others are looked at before they are read.
        """
        super().__init__("checkpoint")
        self.fs = _Fetched(store, files, checked)


class _Fetched(FileSystem):
    """Names of DCP's files, as it reads them, to files in a store."""

    def __init__(self, store: Store, files: Sequence[StoredFile], checked: set[str]) -> None:
        self._store, self._checked = store, checked
        self._files = {Path(file.path).name: file for file in files}

    @contextmanager
    def create_stream(self, path: str | PathLike[str], mode: str) -> Iterator[io.IOBase]:
        file = self._files[Path(path).name]
        place = self._store.local(file.path)
        if file.path not in self._checked:
            if sha256_file(place) != file.sha256:
                raise ArtifactError(
                    f"{self._store.url(file.path)} was altered on its way here (sha256): run it again"
                )
            self._checked.add(file.path)
        with place.open(mode) as stream:
            assert isinstance(stream, io.IOBase)
            yield stream
