"""What a store promises is probed, not assumed; and what it cannot do is told before any work."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.s3 import serve_moto
from tests.s3_proxy import Rule, faulty
from transfusion.artifacts.tables import load_table, store_table
from transfusion.errors import ArtifactError, SpecError
from transfusion.resources import Resources
from transfusion.runner.run import run_job
from transfusion.spec.job import read_job
from transfusion.storage.s3 import S3Store
from transfusion.storage.store import Store, open_store

JOB = """
store: s3://bucket/job
stages:
  images: {uses: data_pipelines.sources.shapes, config: {num_images: 8, seed: 0}}
"""


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with serve_moto(tmp_path_factory.mktemp("moto")) as environment:
        yield environment


@pytest.fixture(params=["rclone", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    name = {"rclone": "s3_environment", "moto": "moto"}[request.param]
    for variable, value in request.getfixturevalue(name).items():
        monkeypatch.setenv(variable, value)
    return open_store(f"s3://bucket/{request.param}-{tmp_path.name}")


def honours_conditions(store: Store) -> bool:
    return "/moto-" in store.uri


def test_the_probe_tells_a_store_that_honours_conditions_from_one_that_does_not(
    store: Store,
) -> None:
    expected = "conditional-create" if honours_conditions(store) else "last-writer-wins"
    assert store.probe() == expected
    assert not list(store.list(""))


def test_a_fault_during_the_probe_is_not_taken_for_protection(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(s3_environment["AWS_ENDPOINT_URL"]) as proxy:
        for name, value in (s3_environment | {"AWS_ENDPOINT_URL": proxy.address}).items():
            monkeypatch.setenv(name, value)
        # The first PUT passes, every answer to the exclusive one is lost or refused once.
        proxy.rules += [Rule("lose_reply", "PUT"), Rule("slow_down", "PUT")]
        assert open_store("s3://bucket/probed").probe() == "last-writer-wins"


def test_racing_creators_leave_one_whole_content(store: Store) -> None:
    told: dict[int, bool] = {}
    start = threading.Barrier(8)

    def create(index: int) -> None:
        start.wait()
        told[index] = store.create("race", b"writer %d " % index * 1000)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = store.read("race")
    assert kept in {b"writer %d " % index * 1000 for index in range(8)}
    assert len(told) == 8
    if honours_conditions(store):
        assert [kept == b"writer %d " % i * 1000 for i in range(8) if told[i]] == [True]
    else:
        assert any(told.values())
    assert not store.create("race", b"late")
    assert store.read("race") == kept


def test_a_creator_whose_reply_was_lost_knows_its_own_work(
    moto: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(moto["AWS_ENDPOINT_URL"]) as proxy:
        for name, value in (moto | {"AWS_ENDPOINT_URL": proxy.address}).items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://bucket/own")
        proxy.rules.append(Rule("lose_reply", "PUT"))
        assert store.create("manifest.json", b"mine")
        assert proxy.count("PUT") == 2
        assert not store.create("manifest.json", b"theirs")
        assert store.read("manifest.json") == b"mine"


@pytest.mark.parametrize(
    ("changed", "address", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://bucket/x", "AWS_ACCESS_KEY_ID"),
        ({}, "s3://no-such-bucket/x", r"check that the bucket exists \('no-such-bucket'\)"),
    ],
)
def test_a_store_that_cannot_be_used_fails_a_run_at_once_and_says_what_to_check(
    s3_environment: dict[str, str],
    changed: dict[str, str],
    address: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (s3_environment | changed).items():
        monkeypatch.setenv(name, value)
    job = tmp_path / "job.yaml"
    job.write_text(JOB.replace("s3://bucket/job", address))
    started = time.monotonic()
    with pytest.raises((ArtifactError, SpecError), match=message):
        run_job(read_job(job, ()), resources=Resources(), log=logging.getLogger("test"))
    assert time.monotonic() - started < 5


def test_without_credentials_it_says_which_variables_to_set(
    monkeypatch: pytest.MonkeyPatch, s3_environment: dict[str, str]
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(ArtifactError, match="AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket/x").exists("y")


def test_a_bit_that_flips_in_the_cache_is_mended_and_one_in_the_bucket_is_named(
    s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://bucket/{tmp_path.name}")
    assert isinstance(store, S3Store)
    table = pa.table({"key": [f"k{i}" for i in range(1000)]})
    entry = store_table(store, "pool/data", "rows", table)
    copy = store.local(entry.path)
    copy.write_bytes(flipped(copy.read_bytes()))
    assert load_table(store, entry).equals(table)
    store.write(entry.path, flipped(store.read(entry.path)))
    with pytest.raises(ArtifactError, match=f"s3://bucket/.*{entry.sha256}.*altered"):
        load_table(store, entry)


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)
