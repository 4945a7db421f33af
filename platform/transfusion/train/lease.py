"""A lease: two drivers of the same run should not both spend the machine.

It is advice. Checkpoints and the final commit are right without it; whoever ignores it only wastes work.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store

BEAT_S = 5.0
STALE_AFTER_S = 30.0
"""A holder on another machine that was silent for so long counts as gone."""


@contextmanager
def lease(store: Store, folder: str, *, log: logging.Logger) -> Iterator[None]:
    """Holds the run's lease, waiting while another living driver does."""
    path = f"{folder}/lease.json"
    owner = uuid.uuid4().hex
    told = False
    while (holder := _living_holder(store, path)) is not None:
        if not told:
            log.info("waiting: %s (process %s) is training this", holder["host"], holder["pid"])
            told = True
        time.sleep(1.0)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, path, owner, stop, log), daemon=True)
    _write(store, path, owner)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join(timeout=BEAT_S)
        if _read(store, path).get("owner") == owner:
            store.delete(path)


def _beat(store: Store, path: str, owner: str, stop: threading.Event, log: logging.Logger) -> None:
    while not stop.wait(BEAT_S):
        try:
            _write(store, path, owner)
        except Exception as error:
            log.debug("the lease could not be renewed: %s", error)


def _write(store: Store, path: str, owner: str) -> None:
    record = {
        "owner": owner,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "beat": time.time(),
    }
    store.write(path, json.dumps(record).encode())


def _living_holder(store: Store, path: str) -> dict[str, Any] | None:
    record = _read(store, path)
    if not record or record.get("beat", 0.0) + STALE_AFTER_S < time.time():
        return None
    if record.get("boot") == _boot_id() and record.get("host") == socket.gethostname():
        # Here it can be known: a killed driver is not waited for.
        alive = _process_start(int(record["pid"])) == record.get("started")
        return record if alive and record["pid"] != os.getpid() else None
    return record


def _read(store: Store, path: str) -> dict[str, Any]:
    try:
        record = json.loads(store.read(path))
    except (ArtifactError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _boot_id() -> str:
    place = Path("/proc/sys/kernel/random/boot_id")
    return place.read_text().strip() if place.is_file() else ""


def _process_start(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty when there is none (or no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
