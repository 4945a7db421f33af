"""Images in Parquet: the same documents as a folder of the same files, and every bad row with its number."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.documents import Document, Rejected
from data_pipelines.sources import parquet_rows
from data_pipelines.sources.cells import BadRow
from data_pipelines.sources.parquet_images import (
    ParquetImagesConfig,
    draft,
    identities,
    list_shards,
    read,
)
from data_pipelines.sources.row_files import Row
from tests.documents import content, documents_of, names, outcomes, picture, rows_of
from transfusion.errors import ArtifactError

CAPTIONS = [f"number {number}, caf\u00e9\n\U0001f600" for number in range(25)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, write_page_checksum=True, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same data as a folder: the reference."""
    place = tmp_path / "folder"
    place.mkdir()
    rows = []
    for number, caption in enumerate(CAPTIONS):
        (place / f"{number:03}.png").write_bytes(picture(number))
        rows.append({"file_name": f"{number:03}.png", "text": caption})
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def _by_name(place: Path) -> list[tuple[str | bytes, ...]]:
    documents = documents_of("image_folder", path=str(place))
    return [content(document) for document in sorted(documents, key=lambda row: row.key)]


def test_what_the_datasets_library_writes_is_what_the_folder_holds(
    folder: Path, tmp_path: Path
) -> None:
    import datasets

    data = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": picture(n), "path": f"{n:03}.png"} for n in range(25)],
            "said": CAPTIONS,
            "score": [n / 10 for n in range(25)],
        },
        features=datasets.Features(
            picture=datasets.Image(), said=datasets.Value("string"), score=datasets.Value("float32")
        ),
    )
    for part in range(2):
        shard = data.shard(num_shards=2, index=part, contiguous=True)
        shard.to_parquet(str(tmp_path / "hub" / "data" / f"train-{part:05}-of-00002.parquet"))
    (tmp_path / "hub" / "README.md").write_text("---\nconfigs: []\n---\n")
    found = documents_of(
        "parquet_images",
        path=str(tmp_path / "hub"),
        image_column="picture",
        caption_column="said",
        metadata_columns=["score"],
    )
    assert [content(document) for document in found] == _by_name(folder)
    assert names(found[3]) == ["003.png"]
    assert found[0].key == "data/train-00000-of-00002.parquet:0"
    assert [round(document.metadata["score"], 3) for document in found] == [
        n / 10 for n in range(25)
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_plain_column_of_bytes_is_what_the_folder_holds(
    folder: Path, tmp_path: Path, kind: pa.DataType
) -> None:
    columns = {
        "image": pa.array([picture(n) for n in range(25)], kind),
        "text": pa.array(CAPTIONS, pa.large_string()).dictionary_encode(),
        "id": pa.array(range(100, 125)),
    }
    path = _write(tmp_path / "a.parquet", columns, row_group_size=7)
    found = documents_of("parquet_images", path=str(path), key_column="id")
    assert [content(document) for document in found] == _by_name(folder)
    assert [document.key for document in found] == [str(number) for number in range(100, 125)]


def test_every_bad_row_is_rejected_with_its_number(tmp_path: Path) -> None:
    image = pa.StructArray.from_arrays(
        [
            pa.array([picture(0), None, b"", picture(3), picture(4), picture(5), None, picture(7)]),
            pa.array(["a.png", "b.png", None, None, None, None, None, "h.png"]),
        ],
        names=["bytes", "path"],
        mask=pa.array([False] * 6 + [True, False]),
    )
    raw = [b"fine", b"x", b"x", None, b" \n", b"caf\xe9", b"x", b"nul \0"]
    text = pa.array(raw, pa.binary()).view(pa.string())
    path = _write(tmp_path / "a.parquet", {"image": image, "text": text})
    assert outcomes("parquet_images", path=str(path)) == {
        "a.parquet:0": ("fine", picture(0)),
        "a.parquet:1": "[image_missing]",
        "a.parquet:2": "[image_missing]",
        "a.parquet:3": "[no_caption]",
        "a.parquet:4": "[no_caption]",
        "a.parquet:5": "[unreadable_value]",
        "a.parquet:6": "[image_missing]",
        "a.parquet:7": "[nul_character]",
    }
    alone = outcomes("parquet_images", path=str(path), without_caption="image_only")
    assert alone["a.parquet:3"] == (picture(3),)
    assert outcomes("parquet_images", path=str(path), caption_column=None)["a.parquet:5"] == (
        picture(5),
    )


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": ["a.png", "b.png"], "text": ["x", "y"]}, "image_missing"),
        ({"image": [1, 2], "text": ["x", "y"]}, "image_not_bytes"),
        ({"image": [[b"x"], [b"y"]], "text": ["x", "y"]}, "image_not_bytes"),
        ({"image": [b"x", b"y"], "text": [["x"], ["y"]]}, "not_text"),
        ({"image": [b"x", b"y"], "text": ["x", "y"], "id": [None, ""]}, "bad_key"),
    ],
)
def test_columns_of_another_type_reject_their_rows(
    tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    path = _write(tmp_path / "a.parquet", columns)
    key = {"key_column": "id"} if "id" in columns else {}
    assert outcomes("parquet_images", path=str(path), **key) == {
        "a.parquet:0": f"[{reason}]",
        "a.parquet:1": f"[{reason}]",
    }


def test_labels_become_the_prompts_of_their_classes(tmp_path: Path) -> None:
    place = _write(
        tmp_path / "classes.parquet",
        {"image": [picture(n) for n in range(4)], "label": pa.array([1, 0, 7, None], pa.int64())},
    )
    prompt = {"template": "draw a {label}", "names": ("cat", "dog")}
    found = rows_of("parquet_images", path=str(place), caption_column="label", class_prompt=prompt)
    told = [row.reason if isinstance(row, Rejected) else row.segments[0].text for row in found]
    assert told == ["draw a dog", "draw a cat", "unknown_label", "no_caption"]
    here = {"path": str(place), "caption_column": "label"}
    assert identities(ParquetImagesConfig(**here)) != identities(
        ParquetImagesConfig(**here, class_prompt=prompt)
    )


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"jpg": [b"x"], "caption": ["y"]})
    with pytest.raises(ArtifactError, match=r"a\.parquet: .*'image' and none 'text'.*jpg, caption"):
        rows_of("parquet_images", path=str(path))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>404</html>" * 9)
    with pytest.raises(ArtifactError, match=r"a\.parquet: is no readable Parquet"):
        rows_of("parquet_images", path=str(tmp_path))
    path = _write(tmp_path / "b.parquet", {"image": [b"x"], "text": ["y"]})
    path.write_bytes(path.read_bytes().replace(b"image", b"im\xe5ge"))
    with pytest.raises(ArtifactError, match=r"b\.parquet: is no readable Parquet"):
        rows_of("parquet_images", path=str(path))
    with pytest.raises(ArtifactError, match="no such file or folder"):
        rows_of("parquet_images", path=str(tmp_path / "none"))


def test_a_flipped_bit_costs_the_rest_of_its_row_group_and_is_counted(tmp_path: Path) -> None:
    columns = {"image": [picture(n) * 40 for n in range(30)], "text": CAPTIONS + ["more"] * 5}
    path = _write(
        tmp_path / "a.parquet", columns, row_group_size=10, compression="none", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    data[data.index(picture(14))] ^= 1
    path.write_bytes(data)
    rows = rows_of("parquet_images", path=str(path))
    assert [row.key for row in rows] == [f"a.parquet:{number}" for number in range(30)]
    lost = [row for row in rows if isinstance(row, Rejected)]
    assert {row.reason for row in lost} == {"broken_parquet"}
    assert "CRC" in lost[0].detail
    assert [row.key for row in lost] == [f"a.parquet:{number}" for number in range(10, 20)]


def test_a_page_that_is_passed_over_is_an_error_and_no_shift_of_the_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of several pages of images: all captions up to the last batch would meet others' images."""
    monkeypatch.setattr(parquet_rows, "_MOST_ROWS", 1)
    columns = {"image": [picture(n) * 9 for n in range(8)], "text": CAPTIONS[:8]}
    options = {
        "use_dictionary": False,
        "compression": "none",
        "data_page_size": 1,
        "write_batch_size": 2,
    }
    path = _write(tmp_path / "a.parquet", columns, row_group_size=4, **options)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    assert (
        data[start : start + 2] == b"\x15\x00"
    )  # the header's field 1: the type, 0 for a page of data
    data[start + 1] = 2  # an index page: readers pass over it
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"a\.parquet: row group 1 is damaged"):
        rows_of("parquet_images", path=str(path))


def test_a_scalar_column_goes_along_and_a_nested_one_is_json(tmp_path: Path) -> None:
    columns = {
        "image": [b"x", b"y"],
        "text": ["a", "b"],
        "size": [3, None],
        "nsfw": [True, False],
        "score": [float("nan"), 0.5],
        "tags": [["a", "b"], []],
        "day": pa.array([0, 1], pa.date32()),
    }
    _write(tmp_path / "a.parquet", columns)
    found = documents_of(
        "parquet_images",
        path=str(tmp_path),
        metadata_columns=["size", "nsfw", "score", "tags", "day"],
    )
    assert [dict(document.metadata) for document in found] == [
        {"size": 3, "nsfw": True, "tags": '["a", "b"]', "day": "1970-01-01"},
        {"nsfw": False, "score": 0.5, "tags": "[]", "day": "1970-01-02"},
    ]


def test_a_further_file_leaves_the_others_identities_as_they_were(tmp_path: Path) -> None:
    def identity() -> list[str]:
        return identities(ParquetImagesConfig(path=str(tmp_path)))

    for name in "ab":
        _write(tmp_path / f"{name}.parquet", {"image": [name.encode()], "text": [name]})
    first = identity()
    _write(tmp_path / "c.parquet", {"image": [b"c"], "text": ["c"]})
    assert identity()[:2] == first
    _write(tmp_path / "a.parquet", {"image": [b"z"], "text": ["z"]})
    assert [old == new for old, new in zip(first, identity(), strict=False)] == [False, True]


def test_other_metadata_change_no_identity_but_that_of_the_metadata(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", {"image": [b"x"], "text": ["a"], "size": [3]})
    config = ParquetImagesConfig(path=str(tmp_path))
    (plain,) = list_shards(config)
    (more,) = list_shards(config.model_copy(update={"metadata_columns": ("size",)}))
    assert plain.identity == more.identity
    assert plain.metadata != more.metadata


def test_a_large_row_group_is_read_in_parts(tmp_path: Path) -> None:
    """120 MiB in one row group: the reader holds a few batches of it."""
    noise = b"".join(picture(n) for n in range(200))
    big = (noise * (2**20 // len(noise) + 1))[: 2**20]
    columns = {"image": [big[n:] + big[:n] for n in range(120)], "text": ["x"] * 120}
    path = _write(tmp_path / "a.parquet", columns, compression="none", use_dictionary=False)
    del columns
    config = ParquetImagesConfig(path=str(path))
    (shard,) = list_shards(config)
    pool = pa.default_memory_pool()
    before, most, count = pool.bytes_allocated(), 0, 0
    for row in read(config, shard):
        assert isinstance(row, Document)
        most = max(most, pool.bytes_allocated() - before)
        count += 1
    assert count == 120
    assert most < 80 * 2**20, most


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    | st.fixed_dictionaries({"bytes": inner, "path": inner}),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(image=ANY, caption=ANY)
def test_any_values_are_a_draft_or_a_bad_row(image: Any, caption: Any) -> None:
    config = ParquetImagesConfig(path="x")
    try:
        made = draft(config, Row("a:0", {"image": image, "text": caption}))
    except BadRow as bad:
        reason = bad.reason
    else:
        reason = f"{len(made.segments)} segments"
    assert reason in {
        "2 segments", "image_missing", "image_not_bytes", "no_caption", "not_text", "nul_character",
        "lone_surrogate",
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_with_changed_bytes_gives_rows_or_an_error_that_names_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _write(
        tmp_path_factory.mktemp("fuzz") / "a.parquet",
        {"image": [picture(n) for n in range(6)], "text": CAPTIONS[:6]},
        row_group_size=3,
    )
    raw = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(
        raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw
    )
    try:
        told = f"a.parquet: {len(rows_of('parquet_images', path=str(path)))} rows"
    except ArtifactError as error:
        told = str(error)
    faults = (
        "is no readable",
        "there is no column",
        "row group 0 is damaged",
        "row group 1 is damaged",
    )
    assert any(f"a.parquet: {what}" in told for what in ("6 rows", *faults)), told
