"""Shards of a stage, kept beside its artifacts and keyed by what determines them.

A record `records/<k>/<key>.json` says that a shard is done. Its data lie at their sha256 and it holds nothing of
the attempt, so a second attempt, a second driver and a grown listing all come to the same bytes, and which of two
writers was first does not matter. Manifests only list shards; only `gc` deletes them.

The listing of the records says what is missing. What the finished ones hold comes from pages, copies of about a
thousand records that the driver writes on its way: 40 requests where the records alone would take 40,000.

What a stage costs beside its work, at 10,000 images a shard and three files each; counted, unless measured:

    images                                   4 x 10^8       3.5 x 10^9
    shards                                     40,000          350,000
    objects (data, records, pages)            160,040        1,400,342
    LIST requests to resume                       258              514    folders of two digits, 16 side by side
    GET requests to resume                         40              342    pages
    LIST requests before publishing               257            1,281    are all data there?
    manifest, 330 bytes a file (measured)       40 MB           347 MB
    records in the driver (measured)           280 MB           2.4 GB
    plan of a mixture, 16 bytes an image       6.4 GB            56 GB    an epoch

The plan is the largest: it lies in files by stretches of the run, and a reader opens its own. The manifest is what
grows first in one process: past a billion images let several sources, encoded apart, meet in the mixture.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, TypeAdapter

from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.tables import store_table
from transfusion.storage.store import Store

PAGE_RECORDS = 1024
"""Records on a page, about a megabyte."""

PARALLEL = 16
"""Requests side by side."""

MANY = 512
"""From so many files on, a listing of all is cheaper than asking for each."""

USED = "used"
"""An object that every run writes anew: its age is that of the pool's last use."""


class ShardRecord(BaseModel):
    """One finished shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    files: list[FileEntry]
    outcomes: Outcomes
    metadata: dict[str, Any] = {}


def shard_key(*, version: int, config: Any, shard: Any, upstream: Any) -> str:
    """The key of a shard: everything that determines its bytes, and nothing else.

    Args:
        config: The identity of the part of the config that the shard depends on.
        shard: The identity of the source file or group.
        upstream: Identities of what else is used, such as the autoencoder's digest.
    """
    return fingerprint(
        {"version": version, "config": config, "shard": shard, "upstream": upstream}
    )[:32]


def mark_used(store: Store, folder: str) -> None:
    """Notes that a run begins on a pool: `gc` leaves it alone for a while, however old what it finds there."""
    store.write(f"{folder}/{USED}", b"a run began here\n")


class ShardPool:
    """The pool of one stage."""

    def __init__(self, store: Store, folder: str) -> None:
        self.store = store
        self.folder = folder

    def finished(self, keys: Iterable[str]) -> dict[str, ShardRecord]:
        """Records of those shards that are done, in the order of the keys.

        Marks the pool as used before it looks: `gc` leaves a used pool alone.
        """
        mark_used(self.store, self.folder)
        there = self._there()
        wanted = {key: there[key] for key in keys if key in there}
        if not wanted:
            return {}
        records = {
            record.key: record
            for _, page in self.pages()
            for record in page
            if record.key in wanted
        }
        single = [key for key in wanted if key not in records]
        with ThreadPoolExecutor(PARALLEL) as threads:
            read = list(threads.map(lambda key: self._read(wanted[key]), single))
        if len(read) >= PAGE_RECORDS // 4:
            self.keep(read)
        records |= {record.key: record for record in read}
        return {key: records[key] for key in wanted}

    def withdraw_damaged(self, records: Iterable[ShardRecord]) -> set[str]:
        """Takes back the records of which data are gone or cut short, and says which: they are to be made again.

        To be asked before an artifact is published: what it lists is there then, whatever was deleted meanwhile.
        """
        sizes: Mapping[str, int | None]
        kept = list(records)
        paths = [file.path for record in kept for file in record.files]
        if len(paths) < MANY:
            with ThreadPoolExecutor(PARALLEL) as threads:
                sizes = dict(zip(paths, threads.map(self.store.size, paths), strict=True))
        else:
            found = self.store.list_fanned(f"{self.folder}/data")
            sizes = {entry.path: entry.size_bytes for entry in found}
        damaged = {
            record.key
            for record in kept
            if any(sizes.get(file.path) != file.bytes for file in record.files)
        }
        if damaged:
            # A page would tell of them again.
            for path, page in list(self.pages()):
                if any(record.key in damaged for record in page):
                    self.store.delete(path)
        for key in damaged:
            self.store.delete(self._path(key))
        return damaged

    def keep(self, records: Sequence[ShardRecord]) -> None:
        """Writes records together on pages, so that the next run reads them in few requests.

        A driver calls it with what came in, every `PAGE_RECORDS` or so. Pages are copies: losing one costs time.
        """
        ordered = sorted(records, key=lambda record: record.key)
        for start in range(0, len(ordered), PAGE_RECORDS):
            batch = ordered[start : start + PAGE_RECORDS]
            data = canonical_json([record.model_dump(mode="json") for record in batch]).encode()
            self.store.write(f"{self.folder}/pages/{_page_name(data)}", data)

    def commit(
        self,
        key: str,
        tables: Mapping[str, pa.Table],
        *,
        outcomes: Outcomes,
        raw_columns: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardRecord:
        """Stores a shard's tables, then its record; returns the record that stands.

        That is the first one: where a GPU rounds otherwise on a second attempt, both still come to one content.

        Raises:
            ArtifactError: The outcomes do not add up to the input.
        """
        outcomes.check(f"shard {key}")
        raw = set(raw_columns)
        files = [
            store_table(
                self.store,
                f"{self.folder}/data",
                name,
                table,
                raw_columns=[column for column in table.column_names if column in raw],
            )
            for name, table in tables.items()
        ]
        record = ShardRecord(key=key, files=files, outcomes=outcomes, metadata=dict(metadata or {}))
        path = self._path(key)
        data = canonical_json(record.model_dump(mode="json")).encode()
        if not self.store.create(path, data):
            first = self._read(path)
            if all(self.store.size(file.path) == file.bytes for file in first.files):
                return first
            self.store.write(path, data)
        return record

    def records(self) -> Iterator[tuple[str, ShardRecord]]:
        """Every record and where it lies. For `gc`: says nothing of whether its data are there."""
        there = self._there()
        for _, page in self.pages():
            for record in page:
                path = there.pop(record.key, None)
                if path is not None:
                    yield path, record
        with ThreadPoolExecutor(PARALLEL) as threads:
            yield from zip(there.values(), threads.map(self._read, there.values()), strict=True)

    def pages(self) -> Iterator[tuple[str, list[ShardRecord]]]:
        """Every page and where it lies; a damaged one is left out, for the records are there."""
        paths = [entry.path for entry in self.store.list(f"{self.folder}/pages")]
        with ThreadPoolExecutor(PARALLEL) as threads:
            for start in range(0, len(paths), PARALLEL):
                batch = paths[start : start + PARALLEL]
                for path, data in zip(batch, threads.map(self.store.read, batch), strict=True):
                    if path.endswith(_page_name(data)):
                        yield path, _PAGE.validate_json(data)

    def _there(self) -> dict[str, str]:
        """Where the record of each key lies."""
        return {
            entry.path.rpartition("/")[2].removesuffix(".json"): entry.path
            for entry in self.store.list_fanned(f"{self.folder}/records")
        }

    def _path(self, key: str) -> str:
        return f"{self.folder}/records/{key[:2]}/{key}.json"

    def _read(self, path: str) -> ShardRecord:
        return ShardRecord.model_validate_json(self.store.read(path))


_PAGE = TypeAdapter(list[ShardRecord])


def _page_name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}.json"
