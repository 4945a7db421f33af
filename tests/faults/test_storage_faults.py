"""What networks and servers do to requests: it passes, or it is told with bucket and key; never a short file."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.s3 import serve_s3
from tests.s3_proxy import Fault, Proxy, Rule, faulty
from transfusion.errors import ArtifactError
from transfusion.storage.store import Store, open_store

DATA = bytes(range(256)) * 400
LARGE = bytes(range(251)) * 170_000
"""42.7 MB: three parts."""

WRITING: list[Fault] = ["slow_down", "reset", "stall", "cut_put", "lose_reply"]
READING: list[Fault] = ["slow_down", "reset", "stall", "cut_reply"]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, dict[str, str]]]:
    with (
        serve_s3(tmp_path_factory.mktemp("s3")) as environment,
        faulty(environment["AWS_ENDPOINT_URL"], stall_s=2.0) as running,
    ):
        yield running, environment | {"AWS_ENDPOINT_URL": running.address}


@pytest.fixture
def server(proxy: tuple[Proxy, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    running, environment = proxy
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRANSFUSION_S3_READ_TIMEOUT_S", "1")
    monkeypatch.setenv("TRANSFUSION_S3_PATIENCE_S", "3")
    running.seen.clear()
    yield running
    running.rules.clear()


@pytest.fixture
def store(server: Proxy, tmp_path: Path) -> Store:
    return open_store(f"s3://bucket/{tmp_path.name}")


@pytest.mark.parametrize("fault", WRITING)
def test_a_fault_while_writing_passes_and_the_object_is_whole(
    server: Proxy, store: Store, fault: Fault
) -> None:
    store.write("a/b", b"before")
    server.rules.append(Rule(fault, "PUT"))
    store.write("a/b", DATA)
    assert store.read("a/b") == DATA
    assert server.count("PUT") == 3
    assert [entry.size_bytes for entry in store.list("a")] == [len(DATA)]


@pytest.mark.parametrize("fault", READING)
def test_a_fault_while_reading_passes_and_the_bytes_are_whole(
    server: Proxy, store: Store, fault: Fault
) -> None:
    store.write("a/b", DATA)
    server.rules.append(Rule(fault, "GET"))
    assert store.read("a/b") == DATA
    server.rules.append(Rule(fault, "GET"))
    assert store.local("a/b").read_bytes() == DATA
    assert server.count("GET") == 4


@pytest.mark.parametrize("fault", ["cut_put", "lose_reply", "slow_down"])
def test_an_upload_in_parts_repeats_the_part_that_failed(
    server: Proxy, store: Store, tmp_path: Path, fault: Fault
) -> None:
    source = tmp_path / "large"
    source.write_bytes(LARGE)
    server.rules.append(Rule(fault, "PUT", "partNumber=2"))
    store.put_file("large", source)
    assert [server.count("PUT", f"partNumber={part}") for part in (1, 2, 3)] == [1, 2, 1]
    server.rules.append(Rule("cut_reply", "GET"))
    assert store.local("large").read_bytes() == LARGE


@pytest.mark.parametrize("fault", ["slow_down", "reset", "lose_reply"])
def test_the_completion_of_an_upload_in_parts_may_fail_or_its_reply_be_lost(
    server: Proxy, store: Store, fault: Fault
) -> None:
    server.rules.append(Rule(fault, "POST", "uploadId"))
    store.write("large", LARGE)
    assert store.read("large") == LARGE


def test_an_upload_that_fails_for_good_leaves_what_was_there(server: Proxy, store: Store) -> None:
    store.write("large", b"before")
    server.rules.append(Rule("reset", "PUT", "partNumber=3", times=1000))
    with pytest.raises(ArtifactError, match=r"s3://bucket/.*/large: could not write in \d tries"):
        store.write("large", LARGE)
    server.rules.clear()
    assert store.read("large") == b"before"
    assert [entry.path for entry in store.list("")] == ["large"]


@pytest.mark.parametrize("fault", ["slow_down", "reset", "stall"])
def test_a_fault_that_stays_is_told_with_bucket_and_key_in_bounded_time(
    server: Proxy, store: Store, fault: Fault
) -> None:
    server.rules.append(Rule(fault, "GET", times=1000))
    started = time.monotonic()
    with pytest.raises(
        ArtifactError, match=r"s3://bucket/.*/a/b: could not read in \d tries over \d+ s"
    ):
        store.read("a/b")
    # Patience of 3 s, and one more try of three requests that stall for a second each.
    assert time.monotonic() - started < 12
    # Tries do not multiply: eight operations of three requests at most.
    assert server.count("GET") <= 24


def test_a_listing_repeats_the_page_that_failed_and_misses_nothing(
    server: Proxy, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"many/{index:04d}" for index in range(1100)]
    with monkeypatch.context() as direct, ThreadPoolExecutor(16) as threads:
        direct.setenv("AWS_ENDPOINT_URL", server.upstream)
        list(threads.map(lambda name: store.write(name, b"x"), names))
    server.rules += [
        Rule("reset", "GET", "continuation-token"),
        Rule("cut_reply", "GET", "list-type"),
    ]
    assert [entry.path for entry in store.list("many")] == names
    assert server.count("GET", "continuation-token") == 2
    server.rules.append(Rule("slow_down", "GET", "continuation-token", times=1000))
    with pytest.raises(ArtifactError, match="many: could not list"):
        list(store.list("many"))
