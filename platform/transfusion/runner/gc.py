"""Garbage: what no manifest reaches, and what killed writers left half written."""

import re
import time
from collections.abc import Iterable, Iterator

from pydantic import ValidationError

from transfusion.artifacts.manifest import Manifest, manifest_path
from transfusion.artifacts.pool import ShardPool
from transfusion.errors import ArtifactError, StoreRefusedError
from transfusion.storage.store import Entry, Store, Unfinished, open_store

_OURS = re.compile(r"(transfusion|data_pipelines)[\w.]*/(pool|[0-9a-f]{16})/")
"""What a store's objects are called. Whatever else lies below its root is somebody else's: raw data, a project."""

LOOK_AGAIN_EVERY = 500
"""Deletions after which it is asked again whether a run has begun meanwhile."""

UNFINISHED_HOURS = 24.0
"""No write of one object goes on for so long: its writer was killed."""


def collect_garbage(uri: str, *, older_than_hours: float, delete: bool) -> Iterator[str]:
    """Lists, and deletes when asked, the objects that no manifest reaches.

    A shard of an unfinished stage and a checkpoint of an unfinished run are garbage too once nothing has been
    written beside them for the limit. What counts is the folder's youngest object, not the object's own age: a
    run of days needs its first shards to the end, and one that goes on from old shards has marked their pool.
    Writes that were begun over a day ago and never ended are garbage whatever the limit: temporary files on disk,
    parts of uploads on S3 where the server tells of them.

    Raises:
        ArtifactError: A manifest cannot be read, or belongs to a store below this folder.
    """
    store = open_store(uri)
    entries = list(store.list(""))
    reached = _reached(store, entries)
    horizon = time.time() - older_than_hours * 3600
    youngest = _youngest(entries)
    loose = [entry for entry in entries if entry.path not in reached and _OURS.match(entry.path)]
    old = [entry for entry in loose if youngest[_unit(entry.path)] <= horizon]
    # Records first: no run may find one of which the data are gone.
    old.sort(key=lambda entry: (_unit(entry.path), "/records/" not in entry.path, entry.path))
    removed = list[Entry]()
    woken: dict[str, bool] = {}
    for entry in old:
        unit = _unit(entry.path)
        asked = unit in woken and len(removed) % LOOK_AGAIN_EVERY != 0
        if delete and not asked and not woken.get(unit):
            # Reading manifests took a while, and so does deleting: a run may have begun here since.
            woken[unit] = any(e.modified_s > horizon for e in store.list_fanned(unit))
        if woken.get(unit):
            continue
        if delete:
            store.delete(entry.path)
        removed.append(entry)
        yield _line(delete, entry.size_bytes, entry.path)
    unfinished, untold = _unfinished(store)
    for write in unfinished:
        if delete:
            store.give_up(write)
        yield _line(delete, write.size_bytes, f"{write.path} (unfinished)")
    if untold:
        yield f"unfinished uploads are not known: {untold}"
    total = sum(entry.size_bytes for entry in removed)
    spared = len(loose) - len(removed)
    yield (
        f"{len(removed):,} objects, {total:,} bytes {'deleted' if delete else 'to delete'}"
        f"; {spared:,} younger than {older_than_hours:g} h spared; {len(reached):,} in use"
        + f"; {len(unfinished):,} unfinished writes older than {UNFINISHED_HOURS:g} h"
        + ("" if delete or not (removed or unfinished) else "; delete them with --delete")
    )


def _unfinished(store: Store) -> tuple[list[Unfinished], str]:
    """Writes of ours that nobody will end, or why they are not known."""
    try:
        found = store.unfinished()
    except StoreRefusedError as error:
        return [], str(error)
    horizon = time.time() - UNFINISHED_HOURS * 3600
    return [write for write in found if write.begun_s <= horizon and _OURS.match(write.path)], ""


def _line(delete: bool, size_bytes: int | None, what: str) -> str:
    size = "parts" if size_bytes is None else f"{size_bytes:,}"
    return f"{'deleted' if delete else 'garbage'}  {size:>12}  {what}"


def _unit(path: str) -> str:
    """What ages together: the folder of an artifact, or the pool of a stage."""
    return "/".join(path.split("/")[:2])


def _youngest(entries: Iterable[Entry]) -> dict[str, float]:
    youngest: dict[str, float] = {}
    for entry in entries:
        unit = _unit(entry.path)
        youngest[unit] = max(entry.modified_s, youngest.get(unit, 0.0))
    return youngest


def _reached(store: Store, entries: list[Entry]) -> set[str]:
    reached: set[str] = set()
    for entry in entries:
        if entry.path.endswith("/manifest.json"):
            try:
                manifest = Manifest.model_validate_json(store.read(entry.path))
            except ValidationError as error:
                raise ArtifactError(
                    f"{store.url(entry.path)}: cannot be read as a manifest, so what it holds cannot be "
                    "told from garbage; move it away or use the version that wrote it"
                ) from error
            if entry.path != manifest_path(manifest.uses, manifest.fingerprint):
                raise ArtifactError(
                    f"{store.uri}: is no store's root, but holds one below: {entry.path}; name that store's root"
                )
            reached.add(entry.path)
            reached |= {file.path for file in manifest.content.files}
    for folder in {_unit(entry.path) for entry in entries if "/pool/records/" in entry.path}:
        pool, kept = ShardPool(store, folder), set[str]()
        # A record is in use as long as its data are: the next run of the stage then finds the shard.
        for path, record in pool.records():
            if all(file.path in reached for file in record.files):
                reached.add(path)
                kept.add(record.key)
        for path, page in pool.pages():
            if any(record.key in kept for record in page):
                reached.add(path)
    return reached
