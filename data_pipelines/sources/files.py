"""Files on disk: what there is below a root, what each holds, and names that any table can hold.

A content hash is memoised by path, size and modification time: planning a large folder again reads none
of it.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from transfusion.errors import ArtifactError

_RACY_NS = 2_000_000_000
"""A file this young may change again within its clock tick: its hash is not memoised."""

_BYTES_PREFIX = "bytes:"
_ROWS_PER_TRANSACTION = 4096


def key_of(relative: str) -> str:
    """A relative path as text that encodes to UTF-8, one to one.

    A name whose bytes are no UTF-8 becomes `bytes:` and its bytes, percent-encoded.
    """
    raw = os.fsencode(relative)
    if not relative.startswith(_BYTES_PREFIX):
        with suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
    return _BYTES_PREFIX + quote_from_bytes(raw, safe="/")


def path_of(key: str) -> str:
    """The relative path that `key_of` was given."""
    if key.startswith(_BYTES_PREFIX):
        return os.fsdecode(unquote_to_bytes(key.removeprefix(_BYTES_PREFIX)))
    return os.fsdecode(key.encode("utf-8"))


def user_cache() -> Path:
    """The folder for what is kept between runs; a cache, which anyone may empty."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "transfusion"


def walk(root: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, sorted; hidden ones are left out.

    Links to folders are followed, and each folder is entered once: a loop of links ends.

    Raises:
        ArtifactError: A folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        relative = pending.pop()
        folder = root / relative
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise ArtifactError(
                f"{key_of(str(folder))}: cannot list this folder: {error.strerror}"
            ) from error
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            below = f"{relative}/{entry.name}" if relative else entry.name
            if _is_folder(entry):
                folders.append(below)
            else:
                yield below
        pending.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def hash_files(root: Path, relatives: Sequence[str]) -> dict[str, str | OSError]:
    """The sha256 of each file, or why it cannot be read."""
    memo = _Memo()
    found: dict[str, str | OSError] = {}
    for relative in relatives:
        try:
            found[relative] = _hash(root / relative, memo)
        except OSError as error:
            found[relative] = error
    memo.close()
    return found


def _hash(path: Path, memo: "_Memo") -> str:
    if not path.is_file():
        path.stat()
        raise OSError(0, "not a regular file")
    status = path.stat()
    name = os.fsencode(path.absolute())
    known = memo.get(name, status)
    if known is not None:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > _RACY_NS:
        memo.put(name, status, digest)
    return digest


class _Memo:
    """Hashes kept between runs in the user's cache folder; a cache that fails is one that is empty."""

    def __init__(self) -> None:
        cache = user_cache()
        self._database: sqlite3.Connection | None = None
        self._new: list[tuple[bytes, int, int, str]] = []
        with suppress(OSError, sqlite3.Error):
            cache.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(cache / "content_hashes.sqlite", timeout=2)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT)"
            )

    def get(self, path: bytes, status: os.stat_result) -> str | None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                row = self._database.execute(
                    "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?",
                    (path, status.st_size, status.st_mtime_ns),
                ).fetchone()
                return str(row[0]) if row else None
        return None

    def put(self, path: bytes, status: os.stat_result, digest: str) -> None:
        self._new.append((path, status.st_size, status.st_mtime_ns, digest))
        if len(self._new) >= _ROWS_PER_TRANSACTION:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._database is not None:
            self._database.close()

    def _flush(self) -> None:
        """In one short transaction: two planners side by side do not wait for each other's hashing."""
        if self._database is not None and self._new:
            with suppress(sqlite3.Error), self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", self._new
                )
        self._new.clear()
