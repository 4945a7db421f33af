"""A store in a local folder."""

import builtins
import contextlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from transfusion.errors import ArtifactError
from transfusion.storage.store import Entry, Protection, Store, Unfinished, whole_range

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}")


class LocalStore(Store):
    """Objects are files. New ones are written beside their place, flushed, then linked or renamed into it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root = Path(uri)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return (LocalStore, (self.uri,))

    def read(self, path: str) -> bytes:
        try:
            return self._at(path).read_bytes()
        except FileNotFoundError:
            raise ArtifactError(f"{self.url(path)}: there is no such object") from None

    def read_range(self, path: str, start: int, end: int) -> bytes:
        try:
            with self._at(path).open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except FileNotFoundError:
            raise ArtifactError(f"{self.url(path)}: there is no such object") from None
        return whole_range(data, start, end, where=self.url(path))

    def write(self, path: str, data: bytes) -> None:
        self._place(path, lambda temporary: temporary.write_bytes(data), exclusive=False)

    def create(self, path: str, data: bytes) -> bool:
        assert data, "an empty object cannot be created exclusively on every store"
        if self._at(path).exists():
            return False
        return self._place(path, lambda temporary: temporary.write_bytes(data), exclusive=True)

    def put_file(self, path: str, source: Path) -> None:
        self._place(path, lambda temporary: shutil.copyfile(source, temporary), exclusive=False)

    def local(self, path: str, *, fresh: bool = False) -> Path:
        del fresh
        place = self._at(path)
        if not place.is_file():
            raise ArtifactError(f"{self.url(path)}: there is no such object")
        return place

    def size(self, path: str) -> int | None:
        try:
            found = self._at(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str) -> Iterator[Entry]:
        top = self._at(prefix)
        found = []
        for folder, _, names in os.walk(top):
            for name in names:
                if not name.startswith(".tmp-"):
                    place = Path(folder, name)
                    try:
                        status = place.stat()
                    except FileNotFoundError:
                        continue  # deleted since the folder was read
                    path = place.relative_to(self.root).as_posix()
                    found.append(Entry(path, status.st_size, status.st_mtime))
        yield from sorted(found)

    def children(self, prefix: str) -> builtins.list[str]:
        top = self._at(prefix)
        return (
            sorted(f"{prefix}/{place.name}" for place in top.iterdir() if place.is_dir())
            if top.is_dir()
            else []
        )

    def delete(self, path: str) -> None:
        place = self._at(path)
        place.unlink(missing_ok=True)
        # Folders are an accident of the disk, not objects: an empty one goes with its last file.
        with contextlib.suppress(OSError):
            while (place := place.parent) != self.root:
                place.rmdir()

    def unfinished(self) -> builtins.list[Unfinished]:
        found = []
        for folder, _, names in os.walk(self.root):
            for name in filter(_TEMPORARY.fullmatch, names):
                place = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # it has ended
                    status = place.stat()
                    path = place.relative_to(self.root).as_posix()
                    found.append(Unfinished(path, status.st_size, status.st_mtime))
        return sorted(found)

    def give_up(self, unfinished: Unfinished) -> None:
        self.delete(unfinished.path)

    def probe(self) -> Protection:
        try:
            self._place(
                ".probe", lambda temporary: temporary.write_bytes(b"probe"), exclusive=False
            )
            self.delete(".probe")
        except OSError as error:
            raise ArtifactError(f"store {self.uri}: cannot be written: {error}") from error
        return "conditional-create"

    def _at(self, path: str) -> Path:
        place = self.root / path
        assert ".." not in Path(path).parts, path
        return place

    def _place(self, path: str, fill: Callable[[Path], object], *, exclusive: bool) -> bool:
        place = self._at(path)
        temporary = place.parent / f".tmp-{uuid.uuid4().hex}"
        while True:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                fill(temporary)
            except FileNotFoundError:
                # A racing `delete` took the empty folder between the two lines: make it again.
                if place.parent.exists():
                    raise
                continue
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            break
        try:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if exclusive:
                # A hard link fails where the name is taken, which a rename does not.
                os.link(temporary, place)
            else:
                temporary.replace(place)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True
