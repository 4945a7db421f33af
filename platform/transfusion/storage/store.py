"""The interface of a store, and opening one from its URI.

A store promises two things that plain files do not: a name appears whole or not at all, and `create` says
who was first. Everything above it (artifacts, shard pools, checkpoints) is built on these two.
"""

import builtins
import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from transfusion.errors import ArtifactError

Protection = Literal["conditional-create", "last-writer-wins"]


class Entry(NamedTuple):
    """One stored object."""

    path: str
    size_bytes: int
    modified_s: float
    """Seconds since the epoch, by the store's clock: for the age floor of `gc`, never for ordering."""


class Unfinished(NamedTuple):
    """A write that was begun and neither ended nor given up: its writer is at it, or was killed."""

    path: str
    """The object that it was to be; on disk the file that it lies in."""
    size_bytes: int | None
    """None where the store does not tell it with the list."""
    begun_s: float
    """As `Entry.modified_s`."""
    upload: str = ""
    """The store's own name for it."""


class Store(ABC):
    """Names below one root. Paths are relative, with forward slashes. Pickles to its URI alone."""

    uri: str

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole object. Raises ArtifactError, naming it, when there is none."""

    @abstractmethod
    def read_range(self, path: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end` of an object.

        Raises:
            ArtifactError: There is no such object, or it ends before.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Replaces an object; a reader sees the old one or the new one, never a part."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless the name is taken; False if it is. `data` must not be empty.

        On a store that ignores conditional writes (see `probe`) two writers in the same instant may both
        be told True; what the platform creates is the same whoever writes it, or carries its attempt.
        """

    @abstractmethod
    def put_file(self, path: str, source: Path) -> None:
        """Copies a local file in; whole or not at all."""

    @abstractmethod
    def local(self, path: str, *, fresh: bool = False) -> Path:
        """A local file with the object's bytes: the object itself on disk, a cached copy from S3.

        Args:
            fresh: Fetch it again even if there is a copy: what lies in a cache may have been altered there.
        """

    def keeps(self, size_bytes: int) -> bool:
        """Whether objects of so many bytes together would all stay where `local` puts them: on disk, always."""
        del size_bytes
        return True

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of an object; None when there is none."""

    def exists(self, path: str) -> bool:
        """Whether the name is taken."""
        return self.size(path) is not None

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object below a folder, sorted by path; nothing when there is no such folder."""

    def list_fanned(self, prefix: str) -> Iterator[Entry]:
        """As `list`, in no order: on S3 the folders right below this one are listed side by side."""
        return self.list(prefix)

    @abstractmethod
    def children(self, prefix: str) -> builtins.list[str]:
        """The folders right below a folder, sorted; one request, whatever lies below them."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; no complaint when it is gone already."""

    @abstractmethod
    def unfinished(self) -> builtins.list[Unfinished]:
        """Writes that left nothing but what they take up. `list` does not show them.

        Raises:
            StoreRefusedError: The store does not tell.
        """

    @abstractmethod
    def give_up(self, unfinished: Unfinished) -> None:
        """Frees what an unfinished write takes up; no complaint when it has ended meanwhile."""

    @abstractmethod
    def probe(self) -> Protection:
        """Checks that the store is there and writable, and says what protection `create` gives.

        Raises:
            ArtifactError: It cannot be reached or written, naming what is wrong.
        """

    def url(self, path: str) -> str:
        """The full address of an object, for people."""
        return f"{self.uri.rstrip('/')}/{path}"


def whole_range(data: bytes, start: int, end: int, *, where: str) -> bytes:
    """What was read of a range, where it is all of it.

    Raises:
        ArtifactError: The object ends before.
    """
    if len(data) != end - start:
        raise ArtifactError(
            f"{where}: {len(data)} bytes came of {end - start} from {start} on: it was cut short or replaced; "
            "delete it and the manifests that list it, then run the job again: it makes what is missing"
        )
    return data


def open_store(uri: str) -> Store:
    """A store for a local folder or an `s3://bucket/prefix`. Contacts nothing.

    S3 credentials and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...),
    never from the URI, so that they are in no artifact, log or process list.
    """
    if uri.startswith("s3://"):
        from transfusion.storage.s3 import S3Store

        return S3Store(uri)
    if "://" in uri or re.match(r"s3:?/", uri):
        raise ArtifactError(f"store {uri!r}: must be a local folder or start with s3://")
    from transfusion.storage.local import LocalStore

    return LocalStore(str(Path(uri).expanduser().resolve()))


def sha256_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where copies of remote objects are kept: `TRANSFUSION_CACHE`, or a folder of this user's in /tmp."""
    default = Path(tempfile.gettempdir()) / f"transfusion-cache-{os.getuid()}"
    return Path(os.environ.get("TRANSFUSION_CACHE", default))
