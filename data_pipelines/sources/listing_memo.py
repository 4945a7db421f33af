"""Listings of S3, kept in the user's cache folder: a job is planned again without asking for every name again.

A listing is the snapshot that a job works on. What was added to the bucket since is not seen, and what was changed
or deleted is an error when it is read, until the place is listed again: `--refresh`. On disk nothing is kept:
there a listing costs next to nothing.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from data_pipelines.sources.files import user_cache
from data_pipelines.sources.places import RawFile
from transfusion.stage import duration

LISTED_AFTER = "TRANSFUSION_LISTED_AFTER"
"""Environment: seconds since the epoch; older listings are read again. `--refresh` sets it to now."""

_log = logging.getLogger("transfusion.job.listing")


def remembered(path: str, read: Callable[[], tuple[list[RawFile], int]]) -> list[RawFile]:
    """The files of a place, from the cache where it has them; which of both is logged.

    Args:
        path: As the job gives it.
        read: Lists the place and counts the requests it took.
    """
    cached = _cached(path)
    if cached is not None:
        files, age_s = cached
        _log.info(
            f"{path}: {len(files):,} files as listed {duration(max(age_s, 0))} ago; --refresh lists again"
        )
        return files
    started = time.time()
    files, num_requests = read()
    _log.info(f"{path}: {len(files):,} files listed in {num_requests:,} LIST requests")
    if files:
        _keep(path, files, listed_at_s=started)
    return files


def _place(path: str) -> Path:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    name = hashlib.sha256(f"{endpoint}\0{path}".encode("utf-8", "surrogateescape")).hexdigest()
    return user_cache() / "listings" / f"{name}.jsonl"


def _cached(path: str) -> tuple[list[RawFile], float] | None:
    """The files and the age of the listing; None when there is none, or it is broken or too old."""
    try:
        with _place(path).open(encoding="utf-8") as file:
            head = json.loads(next(file))
            if head["listed_at_s"] < float(os.environ.get(LISTED_AFTER) or 0):
                return None
            files = [RawFile(*json.loads(line)) for line in file]
            whole = len(files) == head["num_files"]
            return (files, time.time() - head["listed_at_s"]) if whole else None
    except (OSError, ValueError, TypeError, LookupError, StopIteration):
        return None  # a cache that fails is one that is empty


def _keep(path: str, files: Sequence[RawFile], *, listed_at_s: float) -> None:
    place = _place(path)
    temporary = place.with_suffix(f".{uuid.uuid4().hex}")
    head = {"place": path, "listed_at_s": listed_at_s, "num_files": len(files)}
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as out:
            out.write(json.dumps(head) + "\n")
            out.writelines(json.dumps(file) + "\n" for file in files)
        temporary.replace(place)
