"""Interleaved documents: whatever the file's shape, the texts and images of a plain folder in their order."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.documents import Rejected
from data_pipelines.sources.cells import BadRow
from data_pipelines.sources.interleaved import (
    InterleavedConfig,
    drawing,
    identities,
    list_shards,
    read,
)
from data_pipelines.sources.row_files import Row
from tests.documents import content, documents_of, outcomes, picture, rows_of
from transfusion.errors import ArtifactError

PAGES: list[list[str | int]] = [
    ["A heading\n\nand a paragraph.", 0, "Between.", 1, 2, "The end: caf\u00e9 \U0001f600."],
    ["Text alone."],
    [3],
    [part for number in range(200) for part in (4 + number, f"caption {number}")],
]
"""Documents: texts, and images by their number."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The plain folder: `7.png` is picture 7."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(204):
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


def _shown(pages: list[list[str | int]], folder: Path) -> list[tuple[str | bytes, ...]]:
    """What the documents show, read from the folder."""
    return [
        tuple(p if isinstance(p, str) else (folder / f"{p}.png").read_bytes() for p in page)
        for page in pages
    ]


def _obelics(page: list[str | int], image: Callable[[int], Any]) -> dict[str, Any]:
    return {
        "texts": [part if isinstance(part, str) else None for part in page],
        "images": [None if isinstance(part, str) else image(part) for part in page],
        "metadata": json.dumps([None for _ in page]),
        "general_metadata": json.dumps({"url": "http://example.com"}),
    }


def _jsonl(path: Path, rows: list[Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_obelics_jsonl_that_names_files_shows_what_the_folder_holds(images: Path) -> None:
    rows = [_obelics(page, lambda number: f"./{number}.png") for page in PAGES]
    for name in ("pages.jsonl", "pages.jsonl.gz"):
        path = _jsonl(images.parent / name, rows)
        found = documents_of("interleaved", path=str(path), images=str(images), layout="obelics")
        assert [content(document) for document in found] == _shown(PAGES, images)
        assert [document.key for document in found] == [f"{name}:{n}" for n in range(1, 5)]


def test_obelics_parquet_of_the_datasets_library_shows_what_the_folder_holds(
    images: Path,
) -> None:
    import datasets

    rows = [
        _obelics(page, lambda number: {"bytes": picture(number), "path": f"{number}.png"})
        for page in PAGES
    ]
    features = datasets.Features(
        images=datasets.List(datasets.Image()),
        texts=datasets.List(datasets.Value("string")),
        metadata=datasets.Value("string"),
        general_metadata=datasets.Value("string"),
    )
    path = images.parent / "pages.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    found = documents_of(
        "interleaved", path=str(path), layout="obelics", metadata_columns=["general_metadata"]
    )
    assert [content(document) for document in found] == _shown(PAGES, images)
    assert found[0].metadata == {
        "general_metadata": '{"url": "http://example.com"}',
        "missing_images": 0,
    }


def test_obelics_urls_are_found_by_their_hash(images: Path) -> None:
    def url(number: int) -> str:
        return f"https://example.com/{number}.png?size=large"

    for number in range(204):
        digest = hashlib.sha256(url(number).encode()).hexdigest()
        (images / digest[:2]).mkdir(exist_ok=True)
        (images / f"{number}.png").rename(images / digest[:2] / f"{digest}.png")
    table = pa.Table.from_pylist([_obelics(page, url) for page in PAGES])
    pq.write_table(table, images.parent / "pages.parquet")
    found = documents_of(
        "interleaved",
        path=str(images.parent / "*.parquet"),
        images=str(images),
        layout="obelics",
        image_files="sha256_of_url",
    )
    expected = [
        tuple(part if isinstance(part, str) else picture(part) for part in page) for page in PAGES
    ]
    assert [content(document) for document in found] == expected


def _mmc4(page: list[str | int]) -> dict[str, Any]:
    """The page as MMC4 has it. An image stands before the sentence that follows it."""
    texts: list[str] = []
    infos = []
    for part in page:
        if isinstance(part, str):
            texts.append(part)
        else:
            infos.append(
                {
                    "image_name": f"{part}.png",
                    "raw_url": f"http://example.com/{part}",
                    "matched_text_index": len(texts),
                    "matched_sim": 0.3,
                }
            )
    return {
        "text_list": texts,
        "image_info": infos,
        "similarity_matrix": [[0.0] * len(texts)] * len(infos),
        "url": "http://example.com",
        "could_have_url_duplicate": 0,
    }


def test_mmc4_shows_what_the_folder_holds(images: Path) -> None:
    pages: list[list[str | int]] = [
        [0, "First.", "Second.", 1, 2, "Third.", "Fourth."],
        ["Text", "alone."],
        PAGES[3],
    ]
    path = _jsonl(images.parent / "docs.jsonl", [_mmc4(page) for page in pages])
    found = documents_of(
        "interleaved", path=str(path), images=str(images), layout="mmc4", metadata_columns=["url"]
    )
    joined: list[list[str | int]] = [
        [0, "First. Second.", 1, 2, "Third. Fourth."],
        ["Text alone."],
        PAGES[3],
    ]
    assert [content(document) for document in found] == _shown(joined, images)
    assert found[0].metadata == {"url": "http://example.com", "missing_images": 0}


def test_the_awkward_rows_of_obelics_have_their_reasons(images: Path) -> None:
    rows: list[Any] = [
        {"texts": ["a", None], "images": [None, "0.png"], "id": "good"},
        {"texts": ["a"], "images": ["0.png"]},
        {"texts": [None, "b"], "images": [None, None]},
        {"texts": ["a", "b"], "images": [None]},
        {"texts": "a", "images": [None]},
        {"texts": None, "images": None},
        {"texts": ["a"]},
        {"texts": [7, None], "images": [None, "0.png"]},
        {"texts": [None], "images": [{"x": 1}]},
        {"texts": [], "images": []},
        {"texts": [""], "images": [None]},
        {"texts": ["\ud83d"], "images": [None]},
        {"texts": ["nul \0"], "images": [None]},
        ["texts"],
    ]
    path = _jsonl(images.parent / "p.jsonl", rows)
    with path.open("ab") as file:
        file.write(b'{"texts": ["caf\xe9"], "images": [null]}\n{broken\n\n')
    found = outcomes("interleaved", path=str(path), images=str(images), layout="obelics")
    assert found.pop("p.jsonl:1") == ("a", picture(0))
    assert [found[f"p.jsonl:{line}"] for line in range(2, 17)] == [
        "[both_or_neither]",
        "[both_or_neither]",
        "[uneven_lists]",
        "[not_a_list]",
        "[not_a_list]",
        "[missing_column]",
        "[not_text]",
        "[image_not_bytes]",
        "[empty]",
        "[empty]",
        "[lone_surrogate]",
        "[nul_character]",
        "[bad_json]",
        "[invalid_utf8]",
        "[bad_json]",
    ]
    assert len(found) == 15


def test_the_awkward_rows_of_mmc4_have_their_reasons(images: Path) -> None:
    def row(at: Any, name: Any = "0.png") -> dict[str, Any]:
        return {
            "text_list": ["a", "b"],
            "image_info": [{"image_name": name, "matched_text_index": at}],
        }

    rows = [
        row(1), row(2), row(-1), row(None), row(True), row("0"), row(0, 5),
        {"text_list": ["a"], "image_info": ["0.png"]},
        {"text_list": "a", "image_info": []},
        {"text_list": [None], "image_info": []},
    ]  # fmt: skip
    path = _jsonl(images.parent / "p.jsonl", rows)
    found = outcomes("interleaved", path=str(path), images=str(images), layout="mmc4")
    assert found["p.jsonl:1"] == ("a", picture(0), "b")
    assert [found[f"p.jsonl:{line}"] for line in range(2, 11)] == [
        *["[bad_image_info]"] * 5, "[image_not_bytes]", "[bad_image_info]", "[not_a_list]", "[not_text]",
    ]  # fmt: skip


def test_a_missing_image_costs_itself_or_its_document(images: Path) -> None:
    rows = [
        {"texts": ["a", None, "b", None], "images": [None, "gone.png", None, "1.png"]},
        {"texts": ["a", None], "images": [None, "../images/../../etc/passwd"]},
        {"texts": [None], "images": ["gone.png"]},
        {"texts": [None, "a"], "images": ["2.png", None]},
        {"texts": [None, "a"], "images": ["", None]},
    ]
    path = _jsonl(images.parent / "p.jsonl", rows)
    source = {"path": str(path), "images": str(images), "layout": "obelics"}
    assert list(outcomes("interleaved", **source).values()) == [
        ("a\n\nb", picture(1)),
        ("a",),
        "[empty]",
        (picture(2), "a"),
        ("a",),
    ]
    kept = [row for row in rows_of("interleaved", **source) if not isinstance(row, Rejected)]
    assert [document.metadata["missing_images"] for document in kept] == [1, 1, 0, 1]
    assert list(outcomes("interleaved", **source, missing_image="reject").values()) == [
        "[image_missing]",
        "[image_missing]",
        "[image_missing]",
        (picture(2), "a"),
        "[image_missing]",
    ]


def test_too_many_images_or_bytes_are_rejected_unread(images: Path) -> None:
    path = _jsonl(images.parent / "p.jsonl", [_obelics(PAGES[3], lambda number: f"{number}.png")])
    source = {"path": str(path), "images": str(images), "layout": "obelics"}
    limit = sum((images / f"{number}.png").stat().st_size for number in range(4, 204))
    (kept,) = outcomes("interleaved", **source, max_document_bytes=limit).values()
    assert len(kept) == 400
    for option, most, reason in (
        ("max_images", 199, "too_many_images"),
        ("max_document_bytes", limit - 1, "too_many_bytes"),
    ):
        config = InterleavedConfig.model_validate({**source, option: most})
        (shard,) = list_shards(config)
        (images / "4.png").rename(images / "away")
        (row,) = read(config, shard)
        assert isinstance(row, Rejected)
        assert row.reason == reason
        (images / "away").rename(images / "4.png")


def test_a_changed_or_added_image_changes_the_shards_that_name_it(images: Path) -> None:
    for page, numbers in {"a": [0, 300], "b": [1]}.items():
        row = _obelics(["x", *numbers], lambda number: f"{number}.png")
        _jsonl(images.parent / f"{page}.jsonl", [row])

    def identity() -> list[str]:
        return identities(
            InterleavedConfig(path=f"{images.parent}/*.jsonl", images=str(images), layout="obelics")
        )

    first = identity()
    (images / "2.png").write_bytes(b"another, that no row names")
    assert identity() == first
    (images / "1.png").write_bytes(b"another")
    second = identity()
    assert [old == new for old, new in zip(first, second, strict=True)] == [True, False]
    (images / "300.png").write_bytes(b"it is there now")
    assert [old == new for old, new in zip(second, identity(), strict=True)] == [False, True]


def test_an_image_that_changed_after_planning_is_not_read_as_if_it_had_not(images: Path) -> None:
    path = _jsonl(images.parent / "p.jsonl", [{"texts": [None], "images": ["0.png"]}])
    config = InterleavedConfig(path=str(path), images=str(images), layout="obelics")
    (shard,) = list_shards(config)
    (images / "0.png").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"0\.png: is gone or has changed"):
        list(read(config, shard))


def test_json_without_a_folder_of_images_is_an_error_that_says_what_to_write(
    images: Path,
) -> None:
    path = _jsonl(images.parent / "p.jsonl", [])
    with pytest.raises(ArtifactError, match="say in `images` in which folder"):
        rows_of("interleaved", path=str(path), layout="mmc4")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("0.png"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
    | st.fixed_dictionaries({"image_name": inner, "matched_text_index": inner}),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("layout", ["obelics", "mmc4"])
@settings(max_examples=300, deadline=None)
@given(texts=ANY, images=ANY)
def test_any_json_is_a_draft_or_a_bad_row(layout: Any, texts: Any, images: Any) -> None:
    draw = drawing(InterleavedConfig(path="x", images="y", layout=layout))
    row = Row("a:1", {"texts": texts, "images": images, "text_list": texts, "image_info": images})
    try:
        draft = draw(row)
    except BadRow as bad:
        reason = bad.reason
    else:
        reason = "fine"
        assert isinstance(texts, list)
        assert isinstance(images, list)
        assert len(draft.segments) == (len(texts) if layout == "obelics" else len(texts + images))
    assert reason in {
        "fine", "not_a_list", "uneven_lists", "both_or_neither", "bad_image_info", "image_not_bytes",
        "not_text", "lone_surrogate", "nul_character",
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=60) | ANY, max_size=6),
    layout=st.sampled_from(["obelics", "mmc4"]),
)
def test_any_lines_are_documents_or_rejected(
    lines: list[Any], layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "0.png").write_bytes(picture(0))
    data = b"\n".join(
        line
        if isinstance(line, bytes)
        else json.dumps(
            {"texts": line, "images": line, "text_list": line, "image_info": line}
        ).encode()
        for line in lines
    )
    (folder / "p.jsonl").write_bytes(data)
    rows = rows_of("interleaved", path=str(folder), images=str(folder), layout=layout)
    assert len(rows) == sum(
        bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    )
