"""Whether a checkpoint's files are as they were written: all ranks look, each at a share."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store, sha256_file
from transfusion.train.checkpoints.record import StoredFile

log = logging.getLogger(__name__)

SMALL_FILES_AT_ONCE = 16
"""Fetched and compared: each is a wait for the store."""

INDEX = ".metadata"
"""DCP's file that says what is in which other."""


class Verifier:
    """Compares files in a store with what their record says of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.checked: set[str] = set()
        """Files whose bytes this rank has found as they were written."""

    def missing(self, files: Sequence[StoredFile]) -> list[str]:
        """Which are gone or of another size."""
        return list(self._missing(files).values())

    def whole(self, files: Sequence[StoredFile]) -> list[StoredFile]:
        """Those that are as they were written, of any number of small ones; the others are warned of."""
        missing = self._missing(files)
        there = [file for file in files if file.path not in missing]
        with ThreadPoolExecutor(SMALL_FILES_AT_ONCE) as threads:
            altered = list(threads.map(lambda file: self.altered([file]), there))
        for fault in [*missing.values(), *(fault for faults in altered for fault in faults)]:
            log.warning("%s; it is left out", fault)
        return [file for file, faults in zip(there, altered, strict=True) if not faults]

    def _missing(self, files: Sequence[StoredFile]) -> dict[str, str]:
        """What is wrong by path. Each folder is listed once, however many of the files are in it."""
        folders = {str(Path(file.path).parent) for file in files}
        sizes = {
            entry.path: entry.size_bytes
            for folder in sorted(folders)
            for entry in self._store.list(folder)
        }
        faults = {}
        for file in files:
            if file.path not in sizes:
                faults[file.path] = f"{self._store.url(file.path)} is gone"
            elif sizes[file.path] != file.bytes:
                faults[file.path] = (
                    f"{self._store.url(file.path)} has {sizes[file.path]} bytes, not {file.bytes}"
                )
        return faults

    def altered(self, files: Sequence[StoredFile]) -> list[str]:
        """Which have other bytes than were written; what is fetched to be read stays for `load`."""
        faults = []
        for file in files:
            if sha256_file(self._store.local(file.path)) == file.sha256:
                self.checked.add(file.path)
            else:
                faults.append(f"{self._store.url(file.path)} was altered: its sha256 is another")
        return faults

    def altered_of_all(self, files: Sequence[StoredFile]) -> list[str]:
        """The same of all files, each rank reading a share; on all ranks, together.

        Raises:
            ArtifactError: On all ranks: some rank could not read its share.
        """
        rank, world_size = dist.get_rank(), dist.get_world_size()
        # They stand in the order of the ranks that wrote them; the index is for all.
        index = [file for file in files if Path(file.path).name == INDEX]
        data = [file for file in files if file not in index]
        mine = data[rank * len(data) // world_size : (rank + 1) * len(data) // world_size]
        found: tuple[list[str], str | None] = ([], None)
        try:
            found = (self.altered([*index, *mine]), None)
        except (ArtifactError, OSError) as error:
            # Raised here alone, it would leave the other ranks waiting.
            found = ([], f"rank {rank} cannot read a checkpoint: {error}")
        everyone = [found for _ in range(world_size)]
        dist.all_gather_object(everyone, found)
        for _, unread in everyone:
            if unread is not None:
                raise ArtifactError(unread)
        return [fault for altered, _ in everyone for fault in altered]
