"""Every store keeps the same promises."""

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store, open_store


@pytest.fixture(params=["local", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_environment").items():
            monkeypatch.setenv(name, value)
        yield open_store(f"s3://bucket/{tmp_path.name}")
    else:
        yield open_store(str(tmp_path / "store"))


def test_what_is_written_is_read_back(store: Store) -> None:
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    assert store.read("a/b.txt") == b"two"
    assert store.local("a/b.txt").read_bytes() == b"two"


def test_create_keeps_the_first_and_says_so(store: Store) -> None:
    assert store.create("record.json", b"first")
    assert not store.create("record.json", b"second")
    assert store.read("record.json") == b"first"


def test_listing_is_sorted_complete_and_confined(store: Store) -> None:
    for name in ("x/2", "x/1", "x/y/3", "z/4"):
        store.write(name, b"data!")
    assert [(entry.path, entry.size_bytes) for entry in store.list("x")] == [
        ("x/1", 5), ("x/2", 5), ("x/y/3", 5),
    ]  # fmt: skip
    assert store.children("x") == ["x/y"]
    assert list(store.list("nowhere")) == []
    assert store.children("nowhere") == []


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"nothing/here"):
        store.read("nothing/here")
    assert not store.exists("nothing/here")
    store.delete("nothing/here")


def test_a_local_file_is_put_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 100_000)
    store.put_file("big", source)
    assert store.read("big") == source.read_bytes()
    store.delete("big")
    assert not store.exists("big")


def test_it_travels_to_another_process_as_its_uri(store: Store) -> None:
    store.write("here", b"data")
    assert pickle.loads(pickle.dumps(store)).read("here") == b"data"


def test_of_racing_local_creators_exactly_one_is_told_that_it_won(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    told: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: told.append(store.create("race", b"writer %d" % i)))
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(told) == 1


def test_the_probe_tells_what_protection_there_is(store: Store) -> None:
    # rclone ignores conditional creation; local disk has hard links.
    assert store.probe() == (
        "last-writer-wins" if store.uri.startswith("s3") else "conditional-create"
    )
    assert not list(store.list(""))


def test_a_path_of_another_scheme_is_refused() -> None:
    with pytest.raises(ArtifactError, match="local folder or start with s3://"):
        open_store("gs://bucket/x")
