"""Storing the files of an artifact that is a folder: autoencoder, tokenizer, model, report."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from transfusion.artifacts.canonical import fingerprint
from transfusion.artifacts.manifest import FileEntry
from transfusion.storage.store import Store, sha256_file


def publish_folder(
    store: Store, folder: str, source: Path, *, outside_digest: Collection[str] = ()
) -> list[FileEntry]:
    """Stores every file below `source` as `folder/<content id>/<name>`.

    The content id follows from the files, so two attempts that made the same write the same, and two that
    differ do not mix.

    Args:
        outside_digest: Names of pages and logs, which may differ between runs that made the same.
    """
    places = sorted(place for place in source.rglob("*") if place.is_file())
    names = [place.relative_to(source).as_posix() for place in places]
    sums = [sha256_file(place) for place in places]
    content_id = fingerprint([list(pair) for pair in zip(names, sums, strict=True)])[:12]
    entries = []
    for name, place, sha256 in zip(names, places, sums, strict=True):
        path = f"{folder}/{content_id}/{name}"
        store.put_file(path, place)
        entries.append(
            FileEntry(
                name=name,
                path=path,
                sha256=sha256,
                bytes=place.stat().st_size,
                digest=None if name in outside_digest else sha256,
            )
        )
    return entries


def publish_bytes(
    store: Store, folder: str, name: str, data: bytes, *, rows: int | None = None
) -> FileEntry:
    """Stores one small file as `folder/<sha256>-<name>`."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{folder}/{sha256[:12]}/{name}"
    store.write(path, data)
    return FileEntry(name=name, path=path, sha256=sha256, bytes=len(data), rows=rows, digest=sha256)
