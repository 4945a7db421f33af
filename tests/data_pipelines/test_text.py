"""Text files as a source: text arrives as it was, and every bad row is named with its file and line."""

import errno
import gzip
import io
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.documents import Document, Rejected, Text
from data_pipelines.sources.text import TextConfig, identities, list_shards, read
from data_pipelines.sources.text_formats import read_parquet, read_rows
from tests.hostile import lines, write_text
from transfusion.errors import ArtifactError
from transfusion.storage.store import open_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def zstandard(data: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


def _rows(**config: object) -> list[Document | Rejected]:
    made = TextConfig(**config)
    return [row for shard in list_shards(made) for row in read(made, shard)]


def _texts(rows: list[Document | Rejected]) -> list[str]:
    found = []
    for row in rows:
        assert isinstance(row, Document), row
        (segment,) = row.segments
        assert isinstance(segment, Text)
        found.append(segment.text)
    return found


PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard}


@pytest.mark.parametrize("packed", PACKERS)
def test_every_hostile_line_ends_as_text_or_as_a_reason_with_its_place(
    tmp_path: Path, packed: str
) -> None:
    expected = write_text(tmp_path / "lines.jsonl")
    data = (tmp_path / "lines.jsonl").read_bytes()
    place = tmp_path / f"lines.jsonl{packed}"
    place.write_bytes(PACKERS[packed](data))
    rows = {row.key: row for row in _rows(path=str(place))}
    assert set(rows) == {f"{place.name}:{number}" for number in expected}
    for number, line in expected.items():
        row = rows[f"{place.name}:{number}"]
        if line.reason is None:
            assert _texts([row]) == [line.text]
        else:
            assert isinstance(row, Rejected)
            assert row.reason == line.reason, row
            assert row.detail


def test_plain_text_is_a_document_a_line_or_a_file(tmp_path: Path) -> None:
    place = tmp_path / "poem.txt"
    place.write_bytes("\ufeffroses\r\n\n  \n violets \nend".encode())
    assert _texts(_rows(path=str(place))) == ["roses", " violets ", "end"]
    assert [row.key for row in _rows(path=str(place))] == ["poem.txt:1", "poem.txt:4", "poem.txt:5"]
    whole = _rows(path=str(place), txt_documents="file")
    assert _texts(whole) == ["roses\r\n\n  \n violets \nend"]
    assert whole[0].key == "poem.txt"


def test_a_parquet_column_is_read_whatever_its_string_type(tmp_path: Path) -> None:
    values = ["one", None, "", "two"]
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
    ):
        place = tmp_path / "t.parquet"
        pq.write_table(pa.table({"text": pa.array(values).cast(kind)}), place)
        rows = _rows(path=str(place))
        assert [row.key for row in rows] == [f"t.parquet:{i}" for i in range(4)]
        assert [getattr(row, "reason", "kept") for row in rows] == [
            "kept",
            "null_text",
            "empty",
            "kept",
        ]


def test_a_parquet_column_that_is_no_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    bytes_ = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, bytes_.buffers())
    pq.write_table(pa.table({"text": broken}), tmp_path / "t.parquet", use_dictionary=False)
    rows = _rows(path=str(tmp_path))
    assert [getattr(row, "reason", "kept") for row in rows] == ["kept", "invalid_utf8", "kept"]


def test_a_broken_parquet_file_costs_no_other_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["good"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    pq.write_table(pa.table({"body": ["x", "y"]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    good, *bad = _rows(path=str(tmp_path))
    assert _texts([good]) == ["good"]
    assert [(row.key, row.reason) for row in bad if isinstance(row, Rejected)] == [
        ("b.parquet:0", "broken_parquet"),
        ("c.parquet", "missing_column"),
        ("d.parquet", "not_text"),
    ]


def test_a_line_over_the_limit_is_rejected_and_the_next_one_is_read(tmp_path: Path) -> None:
    place = tmp_path / "long.txt"
    place.write_bytes(b"a" * 10 + b"\n" + b"b" * 11 + b"\n" + b"c" * 3_000_000 + b"\r\nend")
    rows = _rows(path=str(place), max_document_bytes=10)
    assert [getattr(row, "reason", "kept") for row in rows] == [
        "kept",
        "too_long",
        "too_long",
        "kept",
    ]
    assert rows[3].key == "long.txt:4"


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_cut_packed_file_gives_what_it_holds_and_says_where_it_ends(
    tmp_path: Path, packed: str
) -> None:
    body = b"".join(b'{"text": "%s"}\n' % os.urandom(40).hex().encode() for _ in range(20_000))
    (tmp_path / f"cut.jsonl{packed}").write_bytes(PACKERS[packed](body)[:-5000])
    *kept, last = _rows(path=str(tmp_path))
    assert len(kept) > 1000
    assert _texts(kept) == [json.loads(line)["text"] for line in body.splitlines()[: len(kept)]]
    assert isinstance(last, Rejected)
    assert last.reason == "truncated"
    assert last.key == f"cut.jsonl{packed}:{len(kept) + 1}"
    (tmp_path / f"cut.jsonl{packed}").rename(tmp_path / f"cut.txt{packed}")
    (whole,) = _rows(path=str(tmp_path), txt_documents="file")
    assert isinstance(whole, Rejected)
    assert whole.reason == "truncated"


def test_a_corpus_on_s3_reads_to_the_same_rows_as_on_disk(
    tmp_path: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    write_text(tmp_path / "raw" / "lines.jsonl")
    (tmp_path / "raw" / "deep" / "a.txt.zst").write_bytes(zstandard(b"one\ntwo\n"))
    pq.write_table(pa.table({"text": ["x", None, "y"] * 500}), tmp_path / "raw" / "t.parquet")
    store = open_store(f"s3://bucket/{tmp_path.name}")
    for entry in open_store(str(tmp_path / "raw")).list(""):
        store.write(entry.path, (tmp_path / "raw" / entry.path).read_bytes())
    on_s3 = _rows(path=store.uri)
    assert on_s3 == _rows(path=str(tmp_path / "raw"))
    assert _rows(path=f"{store.uri}/**/*.{{txt.zst,parquet}}") == on_s3[-1502:]


def test_a_folder_a_pattern_and_a_file_find_what_they_name(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.jsonl.gz", "sub/deep/c.txt", "sub/notes.md", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)

    def found(path: str) -> list[str]:
        return [str(shard.spec["path"]) for shard in list_shards(TextConfig(path=path))]

    assert found(f"{tmp_path}") == ["a.jsonl", "sub/b.jsonl.gz", "sub/deep/c.txt"]
    assert found(f"{tmp_path}/*.jsonl") == ["a.jsonl"]
    assert found(f"{tmp_path}/**/*.txt") == ["sub/deep/c.txt"]
    assert found(f"{tmp_path}/sub/*.gz") == ["b.jsonl.gz"] or found(f"{tmp_path}/sub/*.gz") == [
        "sub/b.jsonl.gz"
    ]
    assert found(f"{tmp_path}/sub/deep/c.txt") == ["c.txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "no such file or folder"),
        ("*.jsonl", "no file fits this pattern"),
        ("", "no file below this folder ends in"),
        ("picture.png", "says no format"),
        ("gs://bucket/x", "copy it there"),
    ],
)
def test_a_place_with_nothing_to_read_is_an_error(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    place = path if "://" in path else str(tmp_path / path)
    with pytest.raises(ArtifactError, match=message):
        list_shards(TextConfig(path=place))


def test_identity_follows_content_and_rules_and_not_the_place(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one\n")
        (tmp_path / folder / "b.txt").write_text("two\n")
    here = identities(TextConfig(path=str(tmp_path / "here")))
    assert here == identities(TextConfig(path=str(tmp_path / "there")))
    assert here != identities(TextConfig(path=str(tmp_path / "here"), txt_documents="file"))
    (tmp_path / "here" / "b.txt").write_text("2\n")
    (tmp_path / "here" / "c.txt").write_text("three\n")
    changed = identities(TextConfig(path=str(tmp_path / "here")))
    assert changed[0] == here[0]
    assert changed[1] != here[1]


def test_further_columns_go_along_and_leave_the_identity_as_it_is(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "score": 0.5, "language": "de", "tags": ["x"], "n": 1},
        {"text": "b", "score": None, "half": "\ud83d"},
        {"text": "c", "score": "high"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latin = pa.array([b"de", b"caf\xe9"], pa.binary())
    table = {
        "score": [1, 2],
        "text": ["d", "e"],
        "language": pa.Array.from_buffers(pa.string(), 2, latin.buffers()),
        "at": pa.array([0, 10**12], pa.timestamp("s")),
    }
    pq.write_table(pa.table(table), tmp_path / "b.parquet", use_dictionary=False)
    columns = ("score", "language", "tags", "half", "at")
    found = _rows(path=str(tmp_path), metadata_columns=columns)
    assert _texts(found) == ["a", "b", "c", "d", "e"]
    assert [row.metadata for row in found] == [
        {"score": 0.5, "language": "de", "tags": '["x"]'},
        {},
        {"score": "high"},
        {"score": 1, "language": "de", "at": "1970-01-01T00:00:00"},
        {"score": 2},
    ]
    plain = list_shards(TextConfig(path=str(tmp_path)))
    along = list_shards(TextConfig(path=str(tmp_path), metadata_columns=columns))
    assert [shard.identity for shard in along] == [shard.identity for shard in plain]
    assert {shard.metadata for shard in plain} == {""}
    assert "" not in {shard.metadata for shard in along}


def test_a_file_that_changed_after_listing_is_not_read_as_if_it_had_not(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("one\n")
    config = TextConfig(path=str(place))
    (shard,) = list_shards(config)
    place.write_text("two\n")
    with pytest.raises(ArtifactError, match="changed"):
        list(read(config, shard))
    place.unlink()
    with pytest.raises(ArtifactError, match="gone"):
        list(read(config, shard))


def test_hostile_lines_cover_every_reason() -> None:
    assert {line.reason for line in lines()} - {None} == {
        "invalid_utf8", "nul_character", "lone_surrogate", "empty", "null_text", "not_text",
        "missing_column", "bad_json",
    }  # fmt: skip


JSONL = b"\n".join(line.data for line in lines())
PARQUET = pa.BufferOutputStream()
pq.write_table(pa.table({"text": ["one", None, "three" * 50] * 20}), PARQUET)
WHOLE = {
    "t.jsonl": JSONL,
    "t.txt": "caf\u00e9\nline\n".encode() * 30,
    "t.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "t.txt.zst": zstandard(b"line\n" * 300),
    "t.parquet": PARQUET.getvalue().to_pybytes(),
}


@settings(max_examples=200, deadline=2000)
@given(
    key=st.sampled_from(sorted(WHOLE)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=6),
    cut=st.floats(0, 1) | st.none(),
    whole=st.booleans(),
    max_bytes=st.integers(1, 2000),
)
def test_whatever_the_bytes_every_row_is_text_or_has_a_reason(
    key: str, edits: list[tuple[float, bytes]], cut: float | None, whole: bool, max_bytes: int
) -> None:
    data = bytearray(WHOLE[key])
    for place, patch in edits:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch
    with tempfile.TemporaryFile() as stream:
        stream.write(data[: None if cut is None else int(cut * len(data))])
        stream.seek(0)
        if key.endswith(".parquet"):
            rows = list(read_parquet(stream, key, column="text", max_bytes=max_bytes))
        else:
            column = "text" if ".jsonl" in key else None
            rows = list(read_rows(stream, key, column=column, whole=whole, max_bytes=max_bytes))
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        if isinstance(row, Document):
            assert 0 < len(_texts([row])[0].encode()) <= max_bytes
        else:
            assert row.reason
            row.detail.encode()


def test_a_byte_order_mark_cuts_no_line_in_two(tmp_path: Path) -> None:
    """Of a first line that is too long by less than the mark, the end was taken for a line of its own."""
    for length, expected in ((20, ["x" * 20]), (21, []), (22, []), (23, []), (40, [])):
        for file in ("a.txt", "a.txt.gz"):
            data = b"\xef\xbb\xbf" + b"x" * length + b"\nsecond\n"
            place = tmp_path / str(length) / file
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
            rows = _rows(path=str(place), max_document_bytes=20)
            assert len(rows) == 2
            assert _texts([r for r in rows if isinstance(r, Document)]) == [*expected, "second"]
    whole = tmp_path / "20" / "a.txt"
    whole.write_bytes(b"\xef\xbb\xbf" + b"x" * 20)
    (row,) = _rows(path=str(whole), max_document_bytes=20, txt_documents="file")
    assert _texts([row]) == ["x" * 20]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.txt.zst"])
def test_a_packed_file_without_a_byte_is_told_of(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for documents in ("line", "file"):
        (row,) = _rows(path=str(tmp_path / name), txt_documents=documents)
        assert isinstance(row, Rejected)
        assert (row.key, row.reason) == (f"{name}:1", "truncated")
    (tmp_path / "empty.txt").touch()
    assert _rows(path=str(tmp_path / "empty.txt")) == []


def test_a_damaged_row_group_costs_its_rows_one_by_one_and_no_other_group(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(9)]
    place = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": texts, "n": list(range(9))}), place, row_group_size=3, compression="none",
        use_dictionary=False, write_page_checksum=True,
    )  # fmt: skip
    data = place.read_bytes()
    place.write_bytes(data.replace(b"text 4", b"tExt 4"))
    rows = _rows(path=str(place), metadata_columns=("n",))
    assert [row.key for row in rows] == [f"a.parquet:{number}" for number in range(9)]
    lost = [row for row in rows if isinstance(row, Rejected)]
    assert [(row.key, row.reason) for row in lost] == [
        (f"a.parquet:{number}", "broken_parquet") for number in (3, 4, 5)
    ]
    found = {row.key: row for row in rows if isinstance(row, Document)}
    assert found["a.parquet:7"].metadata == {"n": 7}
    assert _texts([found["a.parquet:7"]]) == ["text 7"]


class BadDisk(io.FileIO):
    """Reads the first 64 KiB of a file."""

    def readinto(self, buffer: Any) -> int:
        if self.tell() >= 2**16:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(buffer)


@pytest.mark.parametrize("key", ["a.txt.gz", "a.txt.zst", "a.parquet"])
def test_a_disk_that_cannot_be_read_is_no_fault_of_the_file(key: str, tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(400_000).hex()
    lines = "\n".join(noise[at : at + 100] for at in range(0, len(noise), 100)).encode()
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [noise]}), parquet)
    data = {
        "a.txt.gz": gzip.compress(lines),
        "a.txt.zst": zstandard(lines),
        "a.parquet": parquet.getvalue().to_pybytes(),
    }[key]
    (tmp_path / key).write_bytes(data)
    stream = io.BufferedReader(BadDisk(tmp_path / key))
    rows: Iterator[Document | Rejected] = (
        read_parquet(stream, key, column="text", max_bytes=10**7)
        if key == "a.parquet"
        else read_rows(stream, key, column=None, whole=False, max_bytes=1000)
    )
    with pytest.raises(OSError, match="Input/output error"):
        list(rows)


def test_all_that_is_known_of_a_prompt_goes_along_as_it_is(tmp_path: Path) -> None:
    rows = [
        {"tag": "colors", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
        {"prompt": "a cat", "n": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"prompt": ["a dog"], "score": [1.5], "tags": [["x", "y"]]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")
    found = _rows(path=str(tmp_path), text_column="prompt", metadata_columns="all")
    assert _texts(found) == ["a bench", "a cat", "a dog"]
    assert [row.metadata for row in found] == [*rows, {"score": 1.5, "tags": '["x", "y"]'}]
    shards = [
        list_shards(TextConfig(path=str(tmp_path), text_column="prompt", metadata_columns=columns))
        for columns in ("all", ("all",), ())
    ]
    assert [len({one[n].identity for one in shards}) for n in (0, 1)] == [1, 1]
    assert len({one[0].metadata for one in shards}) == 3
