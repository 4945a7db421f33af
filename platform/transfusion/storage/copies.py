"""Local copies of remote objects, in a folder of bounded size: what was used longest ago makes room.

Processes of one machine share the folder and know nothing of each other: each looks at it anew after it has
added a part of the bound, so that together they go little beyond it.
"""

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import NamedTuple

from transfusion.errors import ArtifactError

DEFAULT_GIB = 64.0

SPARED_S = 60.0
"""A copy that was used so lately may be about to be opened. One that is open outlives its name."""

ABANDONED_S = 3600.0
"""After so long without a change, an unfinished copy belongs to a process that was killed."""

_lock = threading.Lock()
_added: dict[Path, int] = {}
"""Bytes that this process brought into a folder since it last looked; absent before the first look."""


def limit_bytes(folder: Path) -> int:
    """What copies may take: `TRANSFUSION_CACHE_GIB`; without it 64 GiB, or half the disk where that is less.

    Raises:
        ArtifactError: The variable holds no positive number.
    """
    given = os.environ.get("TRANSFUSION_CACHE_GIB")
    if given is None:
        return min(int(DEFAULT_GIB * 2**30), shutil.disk_usage(folder).total // 2)
    try:
        gib = float(given)
    except ValueError:
        gib = 0.0
    if not gib > 0:
        raise ArtifactError(
            f"TRANSFUSION_CACHE_GIB: must be a positive number of GiB, got {given!r}"
        )
    return int(gib * 2**30)


def use(copy: Path) -> bool:
    """Marks a copy as used now; False where there is none (any more)."""
    try:
        stat = copy.stat()
        # Only the time of access: that of change says that a file is the one that was verified.
        os.utime(copy, ns=(time.time_ns(), stat.st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def make_room(folder: Path, size_bytes: int) -> None:
    """Removes the copies that were used longest ago until one more of this size fits the bound."""
    with _lock:
        folder.mkdir(parents=True, exist_ok=True)
        limit = limit_bytes(folder)
        before = _added.get(folder)
        if before is not None and before + size_bytes <= limit // 32:
            _added[folder] = before + size_bytes
            return
        _added[folder] = size_bytes
        copies = _copies(folder)
        excess = sum(copy.size_bytes for copy in copies) + size_bytes - limit
        if excess <= 0:
            return
        # A little more, or every further copy would look again.
        excess += limit // 16
        now = time.time()
        for copy in sorted(copies, key=lambda copy: copy.used_s):
            if excess <= 0:
                return
            spared_s = ABANDONED_S if copy.path.name.startswith(".tmp-") else SPARED_S
            if now - copy.used_s > spared_s and copy.links == 1:
                copy.path.unlink(missing_ok=True)
                excess -= copy.size_bytes


class _Copy(NamedTuple):
    path: Path
    size_bytes: int
    used_s: float
    links: int
    """More than one: it stands in the folder of an artifact too, and removing it here would free nothing."""


def _copies(folder: Path) -> list[_Copy]:
    found = []
    for place, folders, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(place, name)
            # Another process may have removed it.
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                used_s = max(stat.st_atime, stat.st_ctime if name.startswith(".tmp-") else 0.0)
                found.append(_Copy(path, stat.st_size, used_s, stat.st_nlink))
        if not names and not folders:
            _remove_if_abandoned(Path(place), folder)
    return found


def _remove_if_abandoned(place: Path, folder: Path) -> None:
    # A folder that was made just now is about to be filled.
    with contextlib.suppress(OSError):
        if place != folder and time.time() - place.stat().st_mtime > ABANDONED_S:
            place.rmdir()
