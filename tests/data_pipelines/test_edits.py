"""Edits: image, instruction, image; the same from Parquet, from JSONL and from the plain files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.documents import Image, Text
from data_pipelines.sources.cells import BadRow
from data_pipelines.sources.edits import EditsConfig, draft
from data_pipelines.sources.row_files import Row
from tests.documents import content, documents_of, names, outcomes, picture

EDITS = [(number, f"make it {number}, s'il te pla\u00eet", number + 1) for number in range(12)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The layout of a set that was made from emoji: rows beside a folder, names of columns of its own."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    for number in range(13):
        (tmp_path / "set" / "images" / f"{number}.webp").write_bytes(picture(number, "WEBP"))
    rows = [
        {
            "source": f"images/{source}.webp",
            "target": f"images/{target}.webp",
            "instruction": said,
            "text": "what it shows",
        }
        for source, said, target in EDITS
    ]
    (tmp_path / "set" / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "set"


EXPECTED = [
    (picture(source, "WEBP"), said, picture(target, "WEBP")) for source, said, target in EDITS
]


def test_jsonl_beside_a_folder_gives_image_instruction_image(folder: Path) -> None:
    found = documents_of(
        "edits",
        path=str(folder / "edits.jsonl"),
        images=str(folder),
        source_column="source",
        target_column="target",
        metadata_columns=["text"],
    )
    assert [content(document) for document in found] == EXPECTED
    assert [type(segment) for segment in found[0].segments] == [Image, Text, Image]
    assert names(found[3]) == ["images/3.webp", "images/4.webp"]
    assert found[3].key == "edits.jsonl:4"
    assert found[3].metadata == {"text": "what it shows"}


def test_parquet_of_the_datasets_library_gives_the_same(folder: Path) -> None:
    import datasets

    features = datasets.Features(
        original_image=datasets.Image(),
        edit_prompt=datasets.Value("string"),
        edited_image=datasets.Image(),
    )
    columns = {
        "original_image": [{"bytes": picture(row[0], "WEBP"), "path": None} for row in EDITS],
        "edit_prompt": [row[1] for row in EDITS],
        "edited_image": [{"bytes": picture(row[2], "WEBP"), "path": None} for row in EDITS],
    }
    data = datasets.Dataset.from_dict(columns, features=features)
    data.to_parquet(str(folder / "edits.parquet"))
    found = documents_of(
        "edits",
        path=str(folder / "edits.parquet"),
        source_column="original_image",
        instruction_column="edit_prompt",
        target_column="edited_image",
    )
    assert [content(document) for document in found] == EXPECTED


def test_parquet_of_names_takes_the_files_from_the_folder(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in (folder / "edits.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "edits.parquet")
    found = documents_of(
        "edits",
        path=str(folder / "edits.parquet"),
        images=str(folder),
        source_column="source",
        target_column="target",
    )
    assert [content(document) for document in found] == EXPECTED


def test_a_bucket_gives_the_same(
    folder: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfusion.storage.store import open_store

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://bucket/edits")
    for file in folder.rglob("*.*"):
        store.write(str(file.relative_to(folder)), file.read_bytes())
    found = documents_of(
        "edits",
        path="s3://bucket/edits/*.jsonl",
        images="s3://bucket/edits",
        source_column="source",
        target_column="target",
    )
    assert [content(document) for document in found] == EXPECTED


def test_edits_pass_the_stages_as_image_text_image(folder: Path, tmp_path: Path) -> None:
    from data_pipelines.shards import in_process
    from tests.pipeline import make, make_autoencoder
    from transfusion.artifacts.shards import index_entries, row_entries
    from transfusion.artifacts.tables import load_table

    root = tmp_path / "store"
    edits = make(
        root,
        "data_pipelines.sources.edits",
        {
            "path": str(folder / "edits.jsonl"),
            "images": str(folder),
            "source_column": "source",
            "target_column": "target",
            "metadata_columns": ["text"],
        },
    )
    tokenizer = make(
        root, "data_pipelines.tokenizer", {"vocab_size": 300, "max_training_mib": 0.1}, {"d": edits}
    )
    inputs = {"documents": edits, "tokenizer": tokenizer}
    tokens = make(root, "data_pipelines.tokenize_text", {}, inputs, launch=in_process)
    (entry,) = index_entries(tokens).values()
    assert load_table(tokens.store, entry)["layout"].to_pylist() == ["iti"] * 12
    latents = make(
        root,
        "data_pipelines.encode_images",
        {"image_size_px": 16, "micro_batch": 4},
        {"images": edits, "autoencoder": make_autoencoder(root)},
        launch=in_process,
    )
    (entry,) = row_entries(latents).values()
    assert load_table(latents.store, entry)["image_index"].to_pylist() == [0, 1] * 12


def test_every_bad_row_has_its_reason(folder: Path) -> None:
    good = {"source_image": "images/0.webp", "target_image": "images/1.webp", "instruction": "x"}
    changes: list[dict[str, Any]] = [
        {}, {"target_image": "images/none.webp"}, {"source_image": None}, {"target_image": 3},
        {"instruction": None}, {"instruction": " "}, {"instruction": "\udc00"}, {"instruction": ["x"]},
        {"source_image": "/etc/passwd"},
    ]  # fmt: skip
    lines = [json.dumps(good | change) for change in changes]
    lines.append(json.dumps({"source_image": "images/0.webp", "instruction": "x"}))
    (folder / "bad.jsonl").write_text("\n".join(lines))
    found = outcomes("edits", path=str(folder / "bad.jsonl"), images=str(folder))
    assert found["bad.jsonl:1"][1] == "x"
    assert [found[f"bad.jsonl:{line}"] for line in range(2, 11)] == [
        "[image_missing]", "[image_missing]", "[image_not_bytes]", "[no_instruction]", "[no_instruction]",
        "[lone_surrogate]", "[no_instruction]", "[image_missing]", "[missing_column]",
    ]  # fmt: skip


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.fixed_dictionaries({"bytes": inner, "path": inner})
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(source=ANY, said=ANY, target=ANY)
def test_any_values_are_a_draft_or_a_bad_row(source: Any, said: Any, target: Any) -> None:
    row = Row("a:1", {"source_image": source, "instruction": said, "target_image": target})
    try:
        reason = f"{len(draft(EditsConfig(path='x'), row).segments)} segments"
    except BadRow as bad:
        reason = bad.reason
    assert reason in {
        "3 segments", "image_not_bytes", "no_instruction", "lone_surrogate", "nul_character"
    }  # fmt: skip
