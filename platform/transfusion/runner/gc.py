"""Garbage: what no manifest reaches."""

import time
from collections.abc import Iterator

from pydantic import ValidationError

from transfusion.artifacts.manifest import Manifest
from transfusion.artifacts.pool import ShardRecord
from transfusion.errors import ArtifactError
from transfusion.storage.store import Entry, Store, open_store


def collect_garbage(uri: str, *, older_than_hours: float, delete: bool) -> Iterator[str]:
    """Lists, and deletes when asked, the objects that no manifest reaches.

    A shard of an unfinished stage and a checkpoint of an unfinished run are garbage too once they are older
    than the limit: nothing published needs them, and a run in progress is younger.
    """
    store = open_store(uri)
    entries = list(store.list(""))
    reached = _reached(store, entries)
    horizon = time.time() - older_than_hours * 3600
    loose = [entry for entry in entries if entry.path not in reached]
    old = [entry for entry in loose if entry.modified_s <= horizon]
    for entry in old:
        if delete:
            store.delete(entry.path)
        yield f"{'deleted' if delete else 'garbage'}  {entry.size_bytes:>12,}  {entry.path}"
    total = sum(entry.size_bytes for entry in old)
    spared = len(loose) - len(old)
    yield (
        f"{len(old):,} objects, {total:,} bytes {'deleted' if delete else 'to delete'}"
        f"; {spared:,} younger than {older_than_hours:g} h spared; {len(reached):,} in use"
        + ("" if delete or not old else "; delete them with --delete")
    )


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
            reached.add(entry.path)
            reached |= {file.path for file in manifest.content.files}
    for entry in entries:
        # A record is in use as long as its data are: the next run of the stage then finds the shard.
        if "/pool/records/" in entry.path:
            record = ShardRecord.model_validate_json(store.read(entry.path))
            if all(file.path in reached for file in record.files):
                reached.add(entry.path)
    return reached
