"""Promises of every source in the table: a light plan, a listing that reads back, honest identities."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_pipelines.sources
from data_pipelines.documents import Document, Image, Text
from data_pipelines.sources.source import SOURCES, open_listing, source_module
from tests.data_pipelines.tars import pair, write_tar
from tests.pipeline import make
from transfusion.errors import SpecError

HEAVY = ("torch", "ray", "numpy", "pyarrow", "PIL")


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A small config of the source named by the test's `name`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"png")
    (folder / "a.txt").write_text("a caption\n")
    return {
        "shapes": {"num_images": 5, "seed": 0, "images_per_shard": 2},
        "textures": {"num_images": 5, "seed": 0, "images_per_shard": 2},
        "image_folder": {"path": str(folder)},
        "text": {"path": str(folder)},
        "webdataset": {"path": str(write_tar(tmp_path / "tars" / "0.tar", pair("a")))},
        "python_docs": {},
        **_of_rows(tmp_path / "rows", images=folder),
    }[request.getfixturevalue("name")]


def _of_rows(folder: Path, *, images: Path) -> dict[str, dict]:
    folder.mkdir()
    table = pa.table({"image": [b"png"], "text": ["a caption"]})
    pq.write_table(table, folder / "images.parquet")
    edit = {"source_image": "a.png", "instruction": "turn it", "target_image": "a.png"}
    (folder / "edits.jsonl").write_text(json.dumps(edit))
    page = {"texts": ["above", None], "images": [None, "a.png"]}
    (folder / "pages.jsonl").write_text(json.dumps(page))
    return {
        "parquet_images": {"path": str(folder)},
        "edits": {"path": f"{folder}/edits.*", "images": str(images)},
        "interleaved": {
            "path": f"{folder}/pages.*", "images": str(images), "layout": "obelics"
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_listing_reads_back_as_what_was_listed(name: str, config: dict, tmp_path: Path) -> None:
    artifact = make(tmp_path / "store", SOURCES[name], config)
    listing = open_listing(artifact)
    module = source_module(SOURCES[name])
    made = module.STAGE.config.model_validate_json(json.dumps(config))
    assert list(listing.shards) == module.list_shards(made)
    assert [shard.identity for shard in listing.shards] == module.identities(made)
    rows = [row for shard in listing.shards for row in listing.read(shard)]
    assert rows
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert isinstance(row, Document)
        json.dumps(dict(row.metadata))
        assert all(isinstance(segment, Text | Image) for segment in row.segments)


@pytest.mark.parametrize("name", SOURCES)
def test_planning_a_source_loads_nothing_heavy(name: str, config: dict) -> None:
    program = (
        "import sys, json, importlib\n"
        f"module = importlib.import_module({SOURCES[name]!r})\n"
        f"config = module.STAGE.config.model_validate_json({json.dumps(config)!r})\n"
        "assert module.identities(config)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    paths = [entry for entry in sys.path if entry]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_every_module_that_declares_a_source_is_in_the_table() -> None:
    modules = [
        f"data_pipelines.sources.{module.name}"
        for module in pkgutil.iter_modules(data_pipelines.sources.__path__)
    ]
    stages = {name for name in modules if hasattr(importlib.import_module(name), "STAGE")}
    assert stages == set(SOURCES.values())


def test_a_name_that_is_no_source_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'data_pipelines\.sources\.shapes'"):
        source_module("data_pipelines.sources.shape")
