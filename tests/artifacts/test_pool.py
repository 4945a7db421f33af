"""The shard pool: what is done is known from listings and pages, made once, and safe from gc while it is used."""

import hashlib
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from transfusion.artifacts import pool as pool_module
from transfusion.artifacts.manifest import Content, Manifest, Outcomes, manifest_path
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.runner.gc import collect_garbage
from transfusion.storage.local import LocalStore
from transfusion.storage.store import Store, open_store

USES = "data_pipelines.stage"
FOLDER = f"{USES}/pool"


def key_of(index: int) -> str:
    return hashlib.sha256(b"%d" % index).hexdigest()[:32]


def fill(store: Store, count: int) -> tuple[ShardPool, dict[str, ShardRecord]]:
    pool = ShardPool(store, FOLDER)
    records = {}
    for index in range(count):
        table = pa.table({"key": [f"k{index}"]})
        outcomes = Outcomes(input=1, written=1)
        records[key_of(index)] = pool.commit(key_of(index), {"rows": table}, outcomes=outcomes)
    return pool, records


class Counting(LocalStore):
    """A local store that notes what is read."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.reads: list[str] = []

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return super().read(path)


def test_records_come_from_pages_and_only_the_rest_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "PAGE_RECORDS", 8)
    store = Counting(str(tmp_path))
    pool, records = fill(store, 20)
    pool.keep(list(records.values())[:18])
    assert pool.finished([*records, "unknown"]) == records
    assert sum("/pages/" in path for path in store.reads) == 3
    assert sum("/records/" in path for path in store.reads) == 2
    store.reads.clear()
    assert list(pool.finished(reversed(records))) == list(reversed(records))


def test_a_resume_without_pages_writes_them_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "PAGE_RECORDS", 8)
    store = Counting(str(tmp_path))
    pool, records = fill(store, 20)
    assert pool.finished(records) == records
    store.reads.clear()
    assert pool.finished(records) == records
    assert not [path for path in store.reads if "/records/" in path]


def test_a_page_is_not_believed_over_the_listing_nor_when_it_was_altered(tmp_path: Path) -> None:
    pool, records = fill(open_store(str(tmp_path)), 3)
    pool.keep(list(records.values()))
    first, second, third = records
    pool.store.delete(f"{FOLDER}/records/{first[:2]}/{first}.json")
    assert pool.finished(records) == {key: records[key] for key in (second, third)}
    page = next(pool.store.list(f"{FOLDER}/pages")).path
    pool.store.write(page, pool.store.read(page).replace(b'"written":1', b'"written":7'))
    assert pool.finished(records) == {key: records[key] for key in (second, third)}


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("damage", ["deleted", "cut short"])
def test_a_shard_whose_data_are_not_whole_is_taken_back_and_made_again(
    tmp_path: Path, damage: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MANY", many)
    store = open_store(str(tmp_path))
    pool, records = fill(store, 3)
    assert pool.withdraw_damaged(records.values()) == set()
    path = records[key_of(1)].files[0].path
    if damage == "deleted":
        store.delete(path)
    else:
        store.write(path, b"PAR1")
    assert pool.withdraw_damaged(records.values()) == {key_of(1)}
    assert set(pool.finished(records)) == set(records) - {key_of(1)}
    _, again = fill(store, 3)
    assert again == records
    assert pool.finished(records) == records
    assert pool.withdraw_damaged(records.values()) == set()


def test_of_two_attempts_that_differ_the_first_stands(tmp_path: Path) -> None:
    pool = ShardPool(open_store(str(tmp_path)), FOLDER)
    outcomes = Outcomes(input=1, written=1)
    first = pool.commit(key_of(0), {"rows": pa.table({"x": [1.0]})}, outcomes=outcomes)
    second = pool.commit(key_of(0), {"rows": pa.table({"x": [1.0001]})}, outcomes=outcomes)
    assert second == first
    pool.store.delete(first.files[0].path)
    third = pool.commit(key_of(0), {"rows": pa.table({"x": [1.0001]})}, outcomes=outcomes)
    assert third != first
    assert pool.finished([key_of(0)]) == {key_of(0): third}


def test_a_page_does_not_bring_back_what_was_withdrawn(tmp_path: Path) -> None:
    pool = ShardPool(open_store(str(tmp_path)), FOLDER)
    outcomes = Outcomes(input=1, written=1)
    first = pool.commit(key_of(0), {"rows": pa.table({"x": [1.0]})}, outcomes=outcomes)
    pool.keep([first])
    pool.store.delete(first.files[0].path)
    assert pool.withdraw_damaged([first]) == {key_of(0)}
    second = pool.commit(key_of(0), {"rows": pa.table({"x": [1.0001]})}, outcomes=outcomes)
    assert pool.finished([key_of(0)]) == {key_of(0): second}
    assert pool.withdraw_damaged([second]) == set()


def age(root: Path, hours: float) -> None:
    old = time.time() - hours * 3600
    for place in root.rglob("*"):
        os.utime(place, (old, old))


def garbage(store: Store, *, delete: bool = False) -> list[str]:
    lines = list(collect_garbage(store.uri, older_than_hours=24.0, delete=delete))[:-1]
    return [line.split()[-1] for line in lines]


def test_gc_leaves_a_pool_alone_as_long_as_anything_in_it_is_young(tmp_path: Path) -> None:
    """A run of days needs its first shards to the end; one that goes on from old shards marks the pool."""
    store = open_store(str(tmp_path))
    pool, records = fill(store, 3)
    age(tmp_path, 48)
    assert len(garbage(store)) == 6
    pool.commit(key_of(9), {"rows": pa.table({"key": ["k9"]})}, outcomes=Outcomes())
    assert garbage(store) == []
    age(tmp_path, 48)
    pool.finished(records)
    assert garbage(store) == []


def test_gc_deletes_records_before_data_and_keeps_what_a_manifest_reaches(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    pool, records = fill(store, 4)
    pool.keep(list(records.values()))
    used = [records[key_of(0)], records[key_of(1)]]
    content = Content(kind="latents", files=[file for record in used for file in record.files])
    manifest = Manifest(
        stage="s", uses=USES, version=1, fingerprint="f" * 64, payload={}, config={}, inputs={},
        content=content, digest=content.digest(),
    )  # fmt: skip
    store.write(manifest_path(USES, "f" * 64), manifest.model_dump_json().encode())
    age(tmp_path, 48)
    assert ["/records/" in path for path in garbage(store, delete=True)] == [True] * 2 + [False] * 2
    assert pool.finished(records) == {record.key: record for record in used}
    assert next(pool.pages())


def test_gc_spares_a_pool_where_a_run_began_after_it_had_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    pool, records = fill(store, 2)
    age(tmp_path, 48)
    read = ShardPool.records

    def while_a_run_begins(self: ShardPool) -> object:
        yield from read(self)
        pool.finished(records)

    monkeypatch.setattr(ShardPool, "records", while_a_run_begins)
    assert garbage(store, delete=True) == []
    assert set(pool.finished(records)) == set(records)
