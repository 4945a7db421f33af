"""Shards of a stage, kept beside its artifacts and keyed by what determines them.

A record `pool/<key>.json` says that a shard is done. Its data lie at their sha256 and it holds nothing of the
attempt, so a second attempt, a second driver and a grown listing all come to the same bytes, and which of two
writers was first does not matter. Manifests only list shards; only `gc` deletes them.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.tables import store_table
from transfusion.storage.store import Store


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


class ShardPool:
    """The pool of one stage."""

    def __init__(self, store: Store, folder: str) -> None:
        self.store = store
        self.folder = folder

    def finished(self, keys: Iterable[str]) -> dict[str, ShardRecord]:
        """Records of those shards that are done; one listing, then one read a shard, side by side."""
        there = {entry.path for entry in self.store.list(f"{self.folder}/records")}
        paths = {key: self._path(key) for key in keys}
        done = [key for key, path in paths.items() if path in there]
        with ThreadPoolExecutor(16) as threads:
            return dict(zip(done, threads.map(self._read, done), strict=True))

    def commit(
        self,
        key: str,
        tables: Mapping[str, pa.Table],
        *,
        outcomes: Outcomes,
        raw_columns: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardRecord:
        """Stores a shard's tables, then its record.

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
        self.store.write(self._path(key), canonical_json(record.model_dump(mode="json")).encode())
        return record

    def _path(self, key: str) -> str:
        return f"{self.folder}/records/{key}.json"

    def _read(self, key: str) -> ShardRecord:
        return ShardRecord.model_validate_json(self.store.read(self._path(key)))
