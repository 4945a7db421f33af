"""Places: the same promises on disk and on S3."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.sources import places_s3, ranges
from data_pipelines.sources.listing_memo import LISTED_AFTER
from data_pipelines.sources.place_patterns import matcher, split_pattern
from data_pipelines.sources.places import Place, RawFile, open_place, read_ahead
from tests.s3 import serve_s3
from tests.s3_proxy import Fault, Rule, faulty
from transfusion.errors import ArtifactError
from transfusion.storage.store import open_store

TREE = {
    "b.txt": b"two",
    "a.txt": b"one",
    "z/deep/c.txt": b"three",
    "z/notes.md": b"no text",
    "empty.txt": b"",
    ".hidden.txt": b"never",
    "z/.git/d.txt": b"never",
    "caf\u00e9 a+b %20.txt": b"odd name",
}
SHOWN = ["a.txt", "b.txt", "caf\u00e9 a+b %20.txt", "empty.txt", "z/notes.md", "z/deep/c.txt"]


class Raw:
    """A folder of raw files on disk or in a bucket, to write and to open."""

    def __init__(self, root: str) -> None:
        self.root, self._store = root, open_store(root)

    def write(self, key: str, data: bytes) -> None:
        self._store.write(key, data)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def open(self, below: str = "") -> Place:
        return open_place(f"{self.root}{below}", where="test")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["disk", "s3"])
def raw(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Raw]:
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_environment").items():
            monkeypatch.setenv(name, value)
        yield Raw(f"s3://bucket/{tmp_path.name}/raw")
    else:
        yield Raw(str(tmp_path / "raw"))


@pytest.fixture
def tree(raw: Raw) -> Raw:
    for key, data in TREE.items():
        if data:  # rclone keeps no empty object in a folder of its own
            raw.write(key, data)
    raw.write("empty.txt", b"")
    return raw


def test_a_folder_shows_every_file_but_hidden_ones_in_the_order_of_a_walk(tree: Raw) -> None:
    place = tree.open()
    assert place.keys() == SHOWN
    files = place.files()
    assert [file.key for file in files] == SHOWN
    assert [file.size_bytes for file in files] == [len(TREE[key]) for key in SHOWN]
    kinds = {file.mark.partition(":")[0] for file in files}
    assert kinds == {"etag" if tree.root.startswith("s3") else "sha256"}
    for file in files:
        assert place.read(file.key, file.mark) == TREE[file.key]
        with place.open(file.key, file.mark) as stream:
            assert stream.read() == TREE[file.key]
    wanted = [(file.key, file.mark) for file in files] * 10
    assert list(read_ahead(place, wanted)) == [TREE[key] for key, _ in wanted]


def test_a_file_and_a_pattern_name_their_own(tree: Raw) -> None:
    (file,) = tree.open("/z/deep/c.txt").files()
    assert (file.key, file.size_bytes) == ("c.txt", 5)
    place = tree.open("/z/deep/c.txt")
    assert place.read(*_at(file)) == b"three"
    with place.open(*_at(file)) as stream:
        assert stream.read() == b"three"
    for pattern, keys in {
        "/*.txt": ["a.txt", "b.txt", "caf\u00e9 a+b %20.txt", "empty.txt"],
        "/**/*.txt": ["a.txt", "b.txt", "caf\u00e9 a+b %20.txt", "empty.txt", "z/deep/c.txt"],
        "/{a,b,x}.txt": ["a.txt", "b.txt"],
        "/z/*/c.???": ["deep/c.txt"],
        "/[!b-z].txt": ["a.txt"],
    }.items():
        place = tree.open(pattern)
        assert place.keys() == keys
        assert [place.read(*_at(file)) for file in place.files((".txt",))]


def test_endings_choose_in_a_folder_and_refuse_what_was_named(tree: Raw) -> None:
    assert [file.key for file in tree.open().files((".md", ".rst"))] == ["z/notes.md"]
    with pytest.raises(ArtifactError, match=r"no file below this folder ends in one of \.tar"):
        tree.open().files((".tar",))
    with pytest.raises(ArtifactError, match=r"notes\.md.*says no format.*\.txt"):
        tree.open("/z/*").files((".txt",))
    with pytest.raises(ArtifactError, match=r"a\.txt.*says no format.*\.tar"):
        tree.open("/a.txt").files((".tar",))


def test_what_is_not_there_is_named(tree: Raw) -> None:
    for below, message in {
        "/nowhere": "no such file or folder",
        "/*.tar": "no file fits this pattern",
        "/{a,b.txt": "not closed",
        "/{a,{b,c}}": "braces hold plain names",
    }.items():
        with pytest.raises(ArtifactError, match=message):
            tree.open(below).keys()
    with pytest.raises(ArtifactError, match="copy it there"):
        open_place("gs://bucket/x", where="text")


def test_a_file_that_changed_or_went_is_not_read_as_if_it_had_not(tree: Raw) -> None:
    place = tree.open()
    (file,) = [file for file in place.files() if file.key == "a.txt"]
    tree.write("a.txt", b"uno")
    for read in (place.read, place.open):
        with pytest.raises(ArtifactError, match=r"a\.txt: is gone or has changed.*run the job"):
            read(*_at(file))
    tree.delete("a.txt")
    for read in (place.read, place.open):
        with pytest.raises(ArtifactError, match=r"a\.txt: is gone or has changed"):
            read(*_at(file))


def test_a_stream_reads_any_span_of_a_large_file(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 100_000)
    data = os.urandom(1_234_567)
    raw.write("large.bin", data)
    place = raw.open()
    (file,) = place.files()
    with place.open(*_at(file)) as stream:
        assert stream.seekable()
        assert stream.seek(-10, os.SEEK_END) == len(data) - 10
        assert stream.read() == data[-10:]
        assert stream.read(1) == b""
        for start, count in [(5, 7), (99_990, 300_000), (0, 1), (1_234_000, 10_000)]:
            stream.seek(start)
            assert stream.read(count) == data[start : start + count]
        stream.seek(0)
        assert stream.read() == data


def test_a_file_that_changes_under_a_stream_on_s3_is_an_error_and_no_mixture(
    s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 1000)
    raw = Raw(f"s3://bucket/{tmp_path.name}/moving")
    raw.write("x.bin", b"a" * 10_000)
    place = raw.open()
    (file,) = place.files()
    with place.open(*_at(file)) as stream:
        assert stream.read(10) == b"a" * 10
        raw.write("x.bin", b"b" * 10_000)
        with pytest.raises(ArtifactError, match=r"x\.bin: is gone or has changed"):
            stream.read()


def test_a_listing_on_s3_takes_a_request_for_each_thousand_files_and_looks_at_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "served" / "bucket" / "many"
    folder.mkdir(parents=True)
    for index in range(2500):
        (folder / f"{index:05}.png").write_bytes(b"%d" % index)
    asked: list[str] = []
    patiently = places_s3.patiently

    def count(verb, url, request):
        asked.append(verb)
        return patiently(verb, url, request)

    monkeypatch.setattr(places_s3, "patiently", count)
    with serve_s3(tmp_path / "served") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        place = open_place("s3://bucket/many", where="test")
        assert len(place.files()) == len(place.keys()) == 2500
        assert asked == ["list"] * 3
        asked.clear()
        assert len(open_place("s3://bucket/many/0001*.png", where="test").files()) == 10
        assert asked == ["list"]


def test_a_listing_of_s3_is_kept_until_it_is_asked_for_again(
    s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO)
    raw = Raw(f"s3://bucket/{tmp_path.name}/kept")
    raw.write("a.txt", b"one")
    first = raw.open().files()
    assert f"{raw.root}: 1 files listed in 1 LIST requests" in caplog.text
    raw.write("b.txt", b"two")
    monkeypatch.setattr(places_s3, "patiently", None)
    assert raw.open().files() == first
    assert "1 files as listed 0s ago; --refresh lists again" in caplog.text
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(TypeError, match="not callable"):
            raw.open().files()
    monkeypatch.undo()
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert [file.key for file in raw.open().files()] == ["a.txt", "b.txt"]
    raw.write("c.txt", b"three")
    monkeypatch.setenv(LISTED_AFTER, str(time.time()))
    assert len(raw.open().files()) == 3
    (kept,) = (tmp_path / "other" / "transfusion" / "listings").iterdir()
    for broken in (b"", b"{}", kept.read_bytes()[:-20], b"\xff" * 9):
        kept.write_bytes(broken)
        assert len(raw.open().files()) == 3


@pytest.mark.parametrize("fault", ["slow_down", "reset", "stall", "cut_reply"])
def test_a_fault_of_the_server_passes_or_is_told_and_never_shortens_what_is_read(
    fault: Fault, s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 100_000)
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    data = os.urandom(450_000)
    where = Raw(f"s3://bucket/{tmp_path.name}/faulty")
    where.write("large.bin", data)
    where.write("small.bin", b"small")
    monkeypatch.setenv("TRANSFUSION_S3_READ_TIMEOUT_S", "0.5")
    with faulty(s3_environment["AWS_ENDPOINT_URL"], stall_s=1.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        place = where.open()
        proxy.rules.append(Rule(fault, "GET", "list-type"))
        large, small = place.files()
        assert (large.size_bytes, small.size_bytes) == (len(data), 5)
        proxy.rules += [Rule(fault, "GET", "large", times=2), Rule(fault, "GET", "small")]
        with place.open(*_at(large)) as stream:
            assert stream.read() == data
        assert list(read_ahead(place, [_at(small)] * 3)) == [b"small"] * 3
        assert not any(rule.times for rule in proxy.rules)
        monkeypatch.setenv("TRANSFUSION_S3_PATIENCE_S", "0.1")
        proxy.rules.append(Rule(fault, "GET", "large", times=99))
        with place.open(*_at(large)) as stream, pytest.raises(ArtifactError, match=r"large\.bin"):
            stream.read()


def test_a_bucket_that_is_missing_is_told_at_once(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactError, match="check that the bucket exists"):
        open_place("s3://no-such-bucket/x", where="test").keys()
    with pytest.raises(ArtifactError, match="names no bucket"):
        open_place("s3://", where="test")


@pytest.mark.parametrize(
    ("pattern", "fitting", "other"),
    [
        ("{000..123}.tar", ["000.tar", "099.tar", "123.tar"], ["124.tar", "23.tar", "0023.tar"]),
        ("{8..12}.tar", ["8.tar", "12.tar"], ["7.tar", "13.tar", "08.tar"]),
        ("**", ["a", "a/b/c"], []),
        ("**/x/*", ["x/a", "a/b/x/c"], ["x", "ax/b", "x/a/b"]),
        ("a.t", ["a.t"], ["abt"]),
        ("[]a].x", ["].x", "a.x"], ["b.x"]),
        ("[*].x", ["*.x"], ["a.x"]),
        ("*", ["a", "line\nbreak"], ["a/b"]),
        ("p{a,b.c}/{1..2}", ["pa/1", "pb.c/2"], ["pbxc/1", "p/1"]),
    ],
)
def test_a_pattern_means_what_a_shell_means(
    pattern: str, fitting: list[str], other: list[str]
) -> None:
    fits = matcher(pattern)
    assert [name for name in [*fitting, *other] if fits(name)] == fitting


def test_a_pattern_is_parted_at_its_first_special_character() -> None:
    assert split_pattern("s3://b/data/x-*/y.tar") == ("s3://b/data", "x-*/y.tar")
    assert split_pattern("*.tar") == ("", "*.tar")
    assert split_pattern("/{a,b}/c") == ("", "{a,b}/c")


def _at(file: RawFile) -> tuple[str, str]:
    return file.key, file.mark
