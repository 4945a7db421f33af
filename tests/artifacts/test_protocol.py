"""The artifact protocol: canonical identity, manifest last, verified reads, shards once."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfusion.artifacts.artifact import Artifact, find_artifact, open_artifact
from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.artifacts.manifest import Content, FileEntry, Manifest, Outcomes, manifest_path
from transfusion.artifacts.pool import ShardPool, shard_key
from transfusion.artifacts.publish import publish_folder
from transfusion.artifacts.tables import load_table, store_table, table_digest
from transfusion.errors import ArtifactError, SpecError
from transfusion.storage.local import LocalStore
from transfusion.storage.store import open_store

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_canonical_json_is_json_and_does_not_depend_on_key_order(value: object) -> None:
    def reversed_keys(item: object) -> object:
        if isinstance(item, dict):
            return {key: reversed_keys(item[key]) for key in reversed(list(item))}
        return [reversed_keys(x) for x in item] if isinstance(item, list) else item

    assert canonical_json(value) == canonical_json(reversed_keys(value))
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize(
    "value", [{1: 2}, {"a": {1, 2}}, [Path("x")], float("nan"), b"bytes", object()]
)
def test_what_is_not_plain_json_is_refused_not_stringified(value: object) -> None:
    with pytest.raises(SpecError):
        fingerprint(value)


def make_manifest(store: LocalStore, folder: Path, **content: object) -> Manifest:
    files = publish_folder(store, "made/0", folder)
    made = Content(kind="model", files=files, **content)
    return Manifest(
        stage="s", uses="made", version=1, fingerprint="f" * 64, payload={}, config={}, inputs={},
        content=made, digest=made.digest(),
    )  # fmt: skip


@pytest.fixture
def committed(tmp_path: Path) -> LocalStore:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("alpha")
    (source / "deep" / "b.bin").write_bytes(bytes(1000))
    store = open_store(str(tmp_path / "store"))
    assert isinstance(store, LocalStore)
    manifest = make_manifest(store, source)
    store.create(manifest_path("made", "f" * 64), manifest.model_dump_json().encode())
    return store


def test_a_folder_comes_back_as_it_was_put(committed: LocalStore) -> None:
    artifact = find_artifact(committed, uses="made", fingerprint="f" * 64)
    assert artifact is not None
    assert (artifact.folder() / "deep" / "b.bin").read_bytes() == bytes(1000)
    assert artifact.read("a.txt") == b"alpha"


def test_a_flipped_bit_is_found_on_read_and_the_file_named(committed: LocalStore) -> None:
    artifact = find_artifact(committed, uses="made", fingerprint="f" * 64)
    assert artifact is not None
    place = committed.root / artifact.entry("deep/b.bin").path
    data = bytearray(place.read_bytes())
    data[500] ^= 1
    place.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"deep/b\.bin.*altered"):
        artifact.local("deep/b.bin")


def test_an_edited_manifest_is_refused(committed: LocalStore) -> None:
    path = manifest_path("made", "f" * 64)
    values = json.loads(committed.read(path))
    values["content"]["metrics"] = {"accuracy": 1.0}
    committed.write(path, json.dumps(values).encode())
    with pytest.raises(ArtifactError, match="edited"):
        open_artifact(committed, path)


def test_without_a_manifest_there_is_no_artifact(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("made/" + "f" * 16 + "/data", b"written, never committed")
    assert find_artifact(store, uses="made", fingerprint="f" * 64) is None


def test_the_digest_covers_content_and_not_where_it_lies_nor_pages() -> None:
    def content(**changes: object) -> str:
        entry = {
            "name": "x",
            "path": "p",
            "sha256": "s",
            "bytes": 1,
            "rows": 2,
            "digest": "d",
        } | changes
        page = FileEntry(name="page.html", path="q", sha256=str(changes), bytes=9)
        return Content(kind="latents", files=[FileEntry(**entry), page]).digest()  # type: ignore[arg-type]

    assert content() == content(path="elsewhere") == content(sha256="other", bytes=7)
    assert len({content(), content(digest="e"), content(rows=3), content(name="y")}) == 4


def test_outcomes_that_do_not_add_up_are_refused() -> None:
    Outcomes(input=5, written=2, filtered={"small": 1}, rejected={"truncated": 2}).check("x")
    with pytest.raises(ArtifactError, match="5 rows came in but 4"):
        Outcomes(input=5, written=4).check("x")


def test_a_table_digest_is_of_rows_not_of_chunks() -> None:
    table = pa.table(
        {"key": [f"k{i}" for i in range(100)], "data": [bytes([i]) * i for i in range(100)]}
    )
    chunked = pa.concat_tables([table.slice(0, 33), table.slice(33, 1), table.slice(34)])
    assert table_digest(table) == table_digest(chunked)
    assert table_digest(table) != table_digest(table.slice(0, 99))
    assert table_digest(table) != table_digest(table.rename_columns(["key", "other"]))


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_a_column_beyond_32_bit_offsets_is_stored_and_has_one_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType
) -> None:
    """The bound is lowered from 2 GiB to what this column holds."""
    values = [bytes([65 + i % 26]) * i for i in range(100)]
    table = pa.table({"n": range(100), "data": pa.array(values).cast(kind)})
    chunked = pa.concat_tables([table.slice(i, 1) for i in range(100)])
    narrow = table_digest(table)
    size_bytes = sum(map(len, values))
    monkeypatch.setattr("transfusion.artifacts.tables._MOST_NARROW_BYTES", size_bytes + 1)
    # A column's own size counts offsets of each chunk; the digest goes by the values.
    assert chunked["data"].nbytes > size_bytes + 1
    assert table_digest(table) == table_digest(chunked) == narrow
    monkeypatch.setattr("transfusion.artifacts.tables._MOST_NARROW_BYTES", size_bytes)
    assert table_digest(table) == table_digest(chunked) != narrow
    assert table_digest(table) != table_digest(table.slice(1))
    store = open_store(str(tmp_path))
    entry = store_table(store, "made/pool/data", "rows", chunked, raw_columns=["data"])
    back = load_table(store, entry)
    assert back.equals(table)
    assert table_digest(back) == entry.digest


def test_a_copy_that_was_altered_is_fetched_anew_and_linked_into_its_folder_again(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("alpha")
    (source / "deep" / "b.bin").write_bytes(bytes(1000))
    store = open_store("s3://bucket/linked")
    content = Content(kind="model", files=publish_folder(store, "made/0", source))
    manifest = Manifest(
        stage="s", uses="made", version=1, fingerprint="f" * 64, payload={}, config={}, inputs={},
        content=content, digest=content.digest(),
    )  # fmt: skip
    artifact = Artifact(store, manifest)
    folder = artifact.folder()
    place = folder / "deep" / "b.bin"
    untouched = (folder / "a.txt").stat()
    # The link and the copy are one file, so what befalls one befalls both.
    assert place.stat().st_nlink == 2
    place.write_bytes(bytes(999) + b"x")
    assert artifact.folder() == folder
    assert place.read_bytes() == bytes(1000)
    assert place.samefile(artifact.local("deep/b.bin"))
    again = (folder / "a.txt").stat()
    assert (again.st_ino, again.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)
    assert not list(folder.rglob(".tmp-*"))


def test_a_shard_committed_twice_is_one_shard(tmp_path: Path) -> None:
    pool = ShardPool(open_store(str(tmp_path)), "stage/pool")
    table = pa.table({"key": ["a", "b"], "data": [b"1", b"2"]})
    first = pool.commit("k" * 32, {"rows": table}, outcomes=Outcomes(input=2, written=2))
    listed = list(pool.store.list(""))
    again = pool.commit("k" * 32, {"rows": table}, outcomes=Outcomes(input=2, written=2))
    assert first == again
    assert [entry.path for entry in pool.store.list("")] == [entry.path for entry in listed]
    assert pool.finished(["k" * 32, "unknown"]) == {"k" * 32: first}
    assert load_table(pool.store, first.files[0]).equals(table)


def test_data_without_a_record_is_no_shard(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store_table(store, "stage/pool/data", "rows", pa.table({"key": ["a"]}))
    assert ShardPool(store, "stage/pool").finished(["k" * 32]) == {}


def test_a_shard_key_moves_with_everything_that_determines_it() -> None:
    base = {"version": 1, "config": {"size": 3}, "shard": "file-a", "upstream": "vae"}
    changed = [base | {name: value} for name, value in
               {"version": 2, "config": {"size": 4}, "shard": "file-b", "upstream": "other"}.items()]  # fmt: skip
    keys = {shard_key(**values) for values in [base, *changed]}
    assert len(keys) == 5
