"""Image folders as a source: every image and every row is accounted for, and a growing folder stays put."""

import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.sources import files
from data_pipelines.sources.image_folder import (
    ImageFolderConfig,
    identities,
    list_shards,
    read,
)
from data_pipelines.sources.listing_memo import LISTED_AFTER
from data_pipelines.sources.source import ShardDescriptor
from transfusion.errors import ArtifactError
from transfusion.storage.store import open_store


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _outcomes(path: Path | str, **config: object) -> dict[str, str]:
    """By key: the caption, or the reason in brackets."""
    made = ImageFolderConfig(path=str(path), **config)
    found: dict[str, str] = {}
    for shard in list_shards(made):
        back = ShardDescriptor.from_json(json.loads(json.dumps(shard.to_json())))
        for row in read(made, back):
            assert row.key not in found
            found[row.key] = f"[{row.reason}]" if isinstance(row, Rejected) else _caption(row)
    return found


def _caption(row: Document) -> str:
    *words, image = row.segments
    assert isinstance(image, Image)
    assert image.data == f"image {row.key}".encode()
    return "".join(word.text for word in words if isinstance(word, Text))


def _image(folder: Path, key: str) -> None:
    (folder / key).parent.mkdir(parents=True, exist_ok=True)
    (folder / key).write_bytes(f"image {key}".encode())


def _metadata(kind: str, folder: Path, rows: list[dict]) -> None:
    place = folder / f"metadata.{kind}"
    if kind == "jsonl":
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        names = list(rows[0])
        table = [names, *([row[name] or "" for name in names] for row in rows)]
        place.write_text("".join(",".join(f'"{cell}"' for cell in line) + "\r\n" for line in table))
    else:
        pq.write_table(pa.Table.from_pylist(rows), place)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_of_each_kind_gives_the_captions(tmp_path: Path, kind: str) -> None:
    for key in ("a.png", "deep/b.jpg", "deep/c.webp", "d.gif"):
        _image(tmp_path, key)
    _metadata(kind, tmp_path, [
        {"file_name": "a.png", "text": "first, with a comma\nand a line", "tags": "x"},
        {"file_name": "deep/b.jpg", "text": "second", "tags": "y"},
        {"file_name": "./deep/../d.gif", "text": None, "tags": "z"},
    ])  # fmt: skip
    _metadata(kind, tmp_path / "deep", [{"file_name": "c.webp", "text": "of its own folder"}])
    assert _outcomes(tmp_path) == {
        "a.png": "first, with a comma\nand a line",
        "deep/b.jpg": "second",
        "deep/c.webp": "of its own folder",
        "d.gif": "[no_caption]",
    }
    alone = _outcomes(tmp_path, without_caption="image_only")
    assert alone["d.gif"] == ""
    assert _outcomes(tmp_path, caption_column="tags")["deep/b.jpg"] == "y"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_labels_become_the_prompts_of_their_classes(tmp_path: Path, kind: str) -> None:
    for key in ("a.png", "b.png", "c.png", "d.png"):
        _image(tmp_path, key)
    (tmp_path / "d.txt").write_text("said beside it")
    _metadata(kind, tmp_path, [
        {"file_name": "a.png", "label": "1"},
        {"file_name": "b.png", "label": "0"},
        {"file_name": "c.png", "label": "2"},
        {"file_name": "d.png", "label": None},
    ])  # fmt: skip
    prompt = {"template": "an image of a {label}.", "names": ("tench", "goldfish")}
    found = _outcomes(tmp_path, caption_column="label", class_prompt=prompt)
    expected = {
        "a.png": "an image of a goldfish.",
        "b.png": "an image of a tench.",
        "c.png": "[unknown_label]",
        "d.png": "said beside it",
    }
    assert found == expected
    by_label = prompt | {"names": {"0": "tench", "1": "goldfish"}}
    assert _outcomes(tmp_path, caption_column="label", class_prompt=by_label) == expected
    # Without names labels are names, and MonoFormer's words are the default.
    plain = _outcomes(tmp_path, caption_column="label", class_prompt={})
    assert plain["c.png"] == "Please generate an image of 2"


def test_numbers_are_labels_only_with_names(tmp_path: Path) -> None:
    for key in ("a.png", "b.png"):
        _image(tmp_path, key)
    _metadata("jsonl", tmp_path, [
        {"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": True},
    ])  # fmt: skip
    bare = _outcomes(tmp_path, caption_column="label", class_prompt={})
    assert bare == {"a.png": "[unknown_label]", "b.png": "[unknown_label]"}
    named = _outcomes(tmp_path, caption_column="label", class_prompt={"names": ("cat", "dog")})
    assert named == {"a.png": "Please generate an image of cat", "b.png": "[unknown_label]"}


def test_the_words_of_a_prompt_are_part_of_the_identity(tmp_path: Path) -> None:
    _image(tmp_path, "a.png")
    _metadata("jsonl", tmp_path, [{"file_name": "a.png", "label": "cat"}])
    here = {"path": str(tmp_path), "caption_column": "label"}
    bare = ImageFolderConfig(**here)
    assert "class_prompt" not in bare.identity()
    one, other = (
        ImageFolderConfig(**here, class_prompt={"template": words})
        for words in ("a {label}", "the {label}")
    )
    assert identities(one) != identities(other)
    assert one.identity() != other.identity() != bare.identity()
    with pytest.raises(ValueError, match=r"template must hold \{label\}"):
        ImageFolderConfig(**here, class_prompt={"template": "a picture"})


def test_every_bad_row_and_image_is_named_with_its_reason(tmp_path: Path) -> None:
    for key in ("a.png", "b.png", "c.png", "odd.bin", "half.png"):
        _image(tmp_path, key)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    rows = [
        '{"file_name": "a.png", "text": "kept"}',
        '{"file_name": "a.png", "text": "again"}',
        '{"file_name": "none.png", "text": "x"}',
        '{"file_name": "../a.png", "text": "x"}',
        '{"file_name": "/etc/passwd", "text": "x"}',
        '{"text": "x"}',
        "{broken",
        "[1]",
        '{"file_name": "b.png", "text": 7}',
        '{"file_name": "odd.bin", "text": "named, so it counts"}',
        '{"file_name": "half.png", "text": "\\ud83d"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert _outcomes(tmp_path) == {
        "a.png": "kept",
        "metadata.jsonl:2": "[duplicate_key]",
        "metadata.jsonl:3": "[missing_file]",
        "metadata.jsonl:4": "[outside_folder]",
        "metadata.jsonl:5": "[outside_folder]",
        "metadata.jsonl:6": "[bad_metadata]",
        "metadata.jsonl:7": "[bad_metadata]",
        "metadata.jsonl:8": "[bad_metadata]",
        "b.png": "[bad_caption]",
        "c.png": "[no_caption]",
        "odd.bin": "named, so it counts",
        "half.png": "[bad_caption]",
        "gone.jpg": "[unreadable]",
        "pipe.png": "[unreadable]",
    }


def test_a_text_file_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    for key in ("a.png", "b.png", "c.png", "d.png"):
        _image(tmp_path, key)
    (tmp_path / "a.txt").write_bytes("\ufeffa caf\u00e9\n".encode())
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b" \n")
    assert _outcomes(tmp_path) == {
        "a.png": "a caf\u00e9",
        "b.png": "[bad_caption]",
        "c.png": "[no_caption]",
        "d.png": "[no_caption]",
    }


def test_names_that_are_no_utf8_and_links_in_circles_do_no_harm(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    Path(os.fsdecode(raw + b"/caf\xe9.png")).write_bytes(b"image bytes:caf%E9.png")
    Path(os.fsdecode(raw + b"/caf\xe9.txt")).write_text("latin")
    _image(tmp_path, "bytes:caf%C3%A9.png".replace("bytes:", "bytes_"))
    _image(tmp_path, "deep/er/a.png")
    (tmp_path / "deep" / "er" / "a.txt").write_text("once")
    (tmp_path / "deep" / "er" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert _outcomes(tmp_path) == {
        "bytes:caf%E9.png": "latin",
        "bytes_caf%C3%A9.png": "[no_caption]",
        "deep/er/a.png": "once",
    }


@pytest.mark.parametrize("name", ["plain.png", "caf\u00e9/a b.png", "bytes:x.png", "caf\udce9.png"])
def test_a_key_is_utf8_and_leads_back_to_its_file(name: str) -> None:
    key = files.key_of(name)
    key.encode("utf-8")
    assert files.path_of(key) == name


def test_adding_a_file_changes_one_group_and_leaves_the_others(tmp_path: Path) -> None:
    def grow(first: int, last: int) -> list[str]:
        for index in range(first, last):
            _image(tmp_path, f"{index}.png")
            (tmp_path / f"{index}.txt").write_text(f"number {index}")
        return identities(ImageFolderConfig(path=str(tmp_path), images_per_shard=8))

    before = grow(0, 100)
    after = grow(100, 101)
    assert len(set(before) - set(after)) == 1
    assert 1 <= len(set(after) - set(before)) <= 3
    much = grow(101, 200)
    shards = list_shards(ImageFolderConfig(path=str(tmp_path), images_per_shard=8))
    assert max(len(shard.spec["rows"]) for shard in shards) <= 8
    assert sum(len(shard.spec["rows"]) for shard in shards) == 200
    (tmp_path / "7.txt").write_text("another caption")
    relabelled = identities(ImageFolderConfig(path=str(tmp_path), images_per_shard=8))
    assert len(set(much) - set(relabelled)) == 1


def test_further_columns_go_along_and_leave_the_identity_as_it_is(tmp_path: Path) -> None:
    for key in ("a.png", "b.png"):
        _image(tmp_path, key)
    rows = [{"file_name": "a.png", "text": "x", "score": 5}, {"file_name": "b.png", "text": "y"}]
    _metadata("jsonl", tmp_path, rows)
    plain = ImageFolderConfig(path=str(tmp_path))
    along = ImageFolderConfig(path=str(tmp_path), metadata_columns=("score", "nothing"))
    (before,), (after,) = list_shards(plain), list_shards(along)
    assert [row.metadata for row in read(along, after)] == [{"score": 5}, {}]
    assert [row.metadata for row in read(plain, before)] == [{}, {}]
    assert after.identity == before.identity
    _metadata("jsonl", tmp_path, [rows[0] | {"score": 6}, rows[1]])
    (other,) = list_shards(along)
    assert (other.identity, other.metadata == after.metadata) == (after.identity, False)


def test_a_moved_folder_is_the_same_folder(tmp_path: Path) -> None:
    _image(tmp_path / "here", "a.png")
    (tmp_path / "here" / "a.txt").write_text("x")
    before = identities(ImageFolderConfig(path=str(tmp_path / "here")))
    (tmp_path / "here").rename(tmp_path / "there")
    assert identities(ImageFolderConfig(path=str(tmp_path / "there"))) == before


def test_an_unchanged_file_is_hashed_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a.png", "b.png"):
        _image(tmp_path, key)
        os.utime(tmp_path / key, (time.time() - 100,) * 2)
    _metadata("jsonl", tmp_path, [{"file_name": f"{name}.png", "text": name} for name in "ab"])
    read_files = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(
        files.hashlib, "file_digest", lambda file, kind: read_files.append(1) or digest(file, kind)
    )
    config = ImageFolderConfig(path=str(tmp_path))
    first = identities(config)
    assert len(read_files) == 2
    assert identities(config) == first
    assert len(read_files) == 2
    (tmp_path / "b.png").write_bytes(b"image other")
    assert identities(config) != first
    assert len(read_files) == 3


def test_planning_goes_on_without_a_writable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _image(tmp_path, "a.png")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert identities(ImageFolderConfig(path=str(tmp_path)))


def test_a_folder_on_s3_reads_to_the_same_rows_as_on_disk(
    tmp_path: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "raw"
    for index in range(40):
        _image(folder, f"deep/{index}.png")
        (folder / f"deep/{index}.txt").write_text(f" number {index}\n")
    for key in ("a.png", "b.png", "caf\u00e9 +%.jpg", "d.png", "e.png", "f.png"):
        _image(folder, key)
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "d.txt").write_bytes(b" \n")
    (folder / "e.txt").write_bytes(b"x" * ((1 << 20) + 1))
    (folder / "f.txt").write_text("overruled")
    _metadata("jsonl", folder, [
        {"file_name": "a.png", "text": "first"},
        {"file_name": "f.png", "text": "by its row"},
        {"file_name": "gone.png", "text": "x"},
    ])  # fmt: skip
    _metadata("parquet", folder, [{"file_name": "caf\u00e9 +%.jpg", "text": "odd name"}])
    store = open_store(f"s3://bucket/{tmp_path.name}")
    for entry in open_store(str(folder)).list(""):
        store.write(entry.path, (folder / entry.path).read_bytes())
    on_s3 = _outcomes(store.uri, images_per_shard=8)
    assert on_s3 == _outcomes(folder, images_per_shard=8)
    assert len(on_s3) == 47
    alone = _outcomes(store.uri, without_caption="image_only")
    assert alone == _outcomes(folder, without_caption="image_only")
    before = set(identities(ImageFolderConfig(path=store.uri, images_per_shard=8)))
    store.write("deep/7.txt", b"another caption")
    monkeypatch.setenv(LISTED_AFTER, str(time.time()))
    after = set(identities(ImageFolderConfig(path=store.uri, images_per_shard=8)))
    assert len(before - after) == len(after - before) == 1


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file or folder"):
        list_shards(ImageFolderConfig(path=str(tmp_path / "none")))
    with pytest.raises(ArtifactError, match="no image and no metadata"):
        list_shards(ImageFolderConfig(path=str(tmp_path)))


def test_an_image_that_changed_after_listing_is_not_read_as_if_it_had_not(tmp_path: Path) -> None:
    _image(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("x")
    config = ImageFolderConfig(path=str(tmp_path))
    (shard,) = list_shards(config)
    (tmp_path / "a.png").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="changed"):
        list(read(config, shard))


def test_metadata_that_is_damaged_is_named(tmp_path: Path) -> None:
    place = tmp_path / "metadata.parquet"
    rows = {"file_name": ["0.png", "1.png"], "text": ["first", "second"]}
    pq.write_table(
        pa.table(rows), place, compression="none", use_dictionary=False, write_page_checksum=True
    )
    place.write_bytes(place.read_bytes().replace(b"second", b"sEcond"))
    with pytest.raises(ArtifactError, match=r"metadata\.parquet: is no readable Parquet file"):
        list_shards(ImageFolderConfig(path=str(tmp_path)))


def test_a_column_that_is_no_utf8_can_be_told_of(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(b"file\xe9,text\n0.png,first\n")
    (shard,) = list_shards(ImageFolderConfig(path=str(tmp_path)))
    (row,) = read(ImageFolderConfig(path=str(tmp_path)), shard)
    assert isinstance(row, Rejected)
    assert row.reason == "bad_metadata"
    assert r"file\udce9" in row.detail
    row.detail.encode()
