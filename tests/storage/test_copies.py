"""Local copies of remote objects stay within their bound, and the ones in use stay."""

import os
import time
from pathlib import Path

import pytest

from transfusion.errors import ArtifactError
from transfusion.storage import copies
from transfusion.storage.store import open_store

MIB = 2**20


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, with a bound of 10 MiB."""
    monkeypatch.setattr(copies, "_added", {})
    monkeypatch.setenv("TRANSFUSION_CACHE_GIB", str(10 / 1024))


def put(folder: Path, name: str, *, used_s_ago: float) -> Path:
    place = folder / "bucket" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(bytes(MIB))
    then = time.time() - used_s_ago
    os.utime(place, (then, then))
    return place


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    places = [put(tmp_path, f"{n:02}/data", used_s_ago=10_000 - n) for n in range(10)]
    mtime_ns = places[0].stat().st_mtime_ns
    assert copies.use(places[0])
    assert places[0].stat().st_mtime_ns == mtime_ns
    copies.make_room(tmp_path, MIB)
    left = [place.exists() for place in places]
    assert left[0]
    # One MiB for the new copy, and a sixteenth of the bound besides.
    assert left[1:] == [False, False, *[True] * 7]
    assert not copies.use(places[1])


def test_what_may_be_about_to_be_opened_or_is_linked_stays(tmp_path: Path) -> None:
    fresh = [put(tmp_path, f"fresh-{n}", used_s_ago=1) for n in range(6)]
    unfinished = put(tmp_path, ".tmp-1", used_s_ago=500)
    linked = put(tmp_path, "linked", used_s_ago=9_000)
    os.link(linked, tmp_path / "folder")
    old = [put(tmp_path, f"old-{n}", used_s_ago=8_000) for n in range(2)]
    copies.make_room(tmp_path, 4 * MIB)
    assert all(place.exists() for place in [*fresh, unfinished, linked])
    assert not any(place.exists() for place in old)


def test_many_copies_of_one_process_stay_within_the_bound(tmp_path: Path) -> None:
    for number in range(200):
        copies.make_room(tmp_path, MIB // 4)
        place = put(tmp_path, str(number), used_s_ago=10_000 - number)
        place.write_bytes(bytes(MIB // 4))
        os.utime(place, (time.time() - 10_000 + number,) * 2)
        total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert total <= 10.5 * MIB
    assert total > 8 * MIB


def test_a_bound_that_is_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("many", "0", "-1", "nan"):
        monkeypatch.setenv("TRANSFUSION_CACHE_GIB", value)
        with pytest.raises(ArtifactError, match="TRANSFUSION_CACHE_GIB"):
            copies.make_room(tmp_path, 1)


def test_objects_of_a_bucket_are_fetched_again_when_their_copy_had_to_go(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(copies, "SPARED_S", 0.0)
    store = open_store("s3://bucket/copies")
    for number in range(6):
        store.write(f"object-{number}", bytes([number]) * 3 * MIB)
    for _ in range(2):
        for number in range(6):
            assert store.local(f"object-{number}").read_bytes() == bytes([number]) * 3 * MIB
            total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
            assert total <= 10 * MIB
