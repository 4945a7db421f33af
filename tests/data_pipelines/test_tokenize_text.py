"""Tokens of documents: every row accounted for, the same bytes again, nothing done twice."""

import logging
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards import in_process
from tests.pipeline import make, rows_of, shapes, tokenizer_of
from transfusion.artifacts.pool import ShardPool
from transfusion.artifacts.tokens import MAX_META_COLUMNS, TokenRow, index_table
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer

SHAPES = "data_pipelines.sources.shapes"
TOKENIZE = "data_pipelines.tokenize_text"


def test_every_document_is_there_with_its_text(tmp_path: Path) -> None:
    from data_pipelines.sources.source import open_listing

    listing = shapes(tmp_path / "store")
    tokenizer = tokenizer_of(tmp_path / "store", listing)
    tokens = make(
        tmp_path / "store",
        TOKENIZE,
        {},
        {"documents": listing, "tokenizer": tokenizer},
        launch=in_process,
    )
    decode = Tokenizer(tokenizer.read(MODEL)).decode
    opened = open_listing(listing)
    expected = {
        document.key: document.segments[0].text
        for shard in opened.shards
        for document in opened.read(shard)
    }
    found = {row.key: decode(np.concatenate(row.segments).tolist()) for row in rows_of(tokens)}
    assert found == expected
    assert tokens.manifest.content.outcomes.model_dump() == {
        "input": 24, "written": 24, "filtered": {}, "rejected": {},
    }  # fmt: skip
    assert {row.layout for row in rows_of(tokens)} == {"ti"}


def test_a_second_run_reads_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = shapes(tmp_path / "store")
    inputs = {"documents": listing, "tokenizer": tokenizer_of(tmp_path / "store", listing)}
    first = make(tmp_path / "store", TOKENIZE, {}, inputs, launch=in_process)

    def refuse(*_: object) -> None:
        raise AssertionError("something was launched")

    with caplog.at_level(logging.INFO):
        second = make(tmp_path / "store", TOKENIZE, {}, inputs, launch=refuse)
    assert second.manifest.digest == first.manifest.digest
    assert "tokenize_text: all 3 shards cached, 0 documents tokenized" in caplog.text


def test_a_grown_listing_makes_only_what_is_new(tmp_path: Path) -> None:
    small = shapes(tmp_path / "store", 16)
    inputs = {"tokenizer": tokenizer_of(tmp_path / "store", small)}
    make(tmp_path / "store", TOKENIZE, {}, {"documents": small, **inputs}, launch=in_process)
    launched = []

    def watch(factory, tasks, resources):
        launched.extend(tasks)
        return in_process(factory, tasks, resources)

    grown = shapes(tmp_path / "store", 24)
    tokens = make(tmp_path / "store", TOKENIZE, {}, {"documents": grown, **inputs}, launch=watch)
    assert len(launched) == 1
    assert len(rows_of(tokens)) == 24


def test_a_crash_between_data_and_record_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = shapes(tmp_path / "a")
    whole = make(
        tmp_path / "a",
        TOKENIZE,
        {},
        {"documents": listing, "tokenizer": tokenizer_of(tmp_path / "a", listing)},
        launch=in_process,
    )
    listing = shapes(tmp_path / "b")
    inputs = {"documents": listing, "tokenizer": tokenizer_of(tmp_path / "b", listing)}
    write = ShardPool._path
    calls = []

    def die_on_the_second(self: ShardPool, key: str) -> str:
        calls.append(key)
        # A commit asks for the record's path when its data are stored.
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, key)

    monkeypatch.setattr(ShardPool, "_path", die_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", TOKENIZE, {}, inputs, launch=in_process)
    monkeypatch.undo()
    again = make(tmp_path / "b", TOKENIZE, {}, inputs, launch=in_process)
    assert again.manifest.digest == whole.manifest.digest
    assert len({row.key for row in rows_of(again)}) == len(rows_of(again)) == 24


def row(key: str, **metadata: object) -> TokenRow:
    return TokenRow(
        key=key, layout="t", segments=(), content=bytes(32), num_bytes=0, metadata=metadata
    )


def test_metadata_becomes_columns_of_the_index_each_of_one_type() -> None:
    table = index_table(
        [
            row(
                "b",
                score=5,
                licence="cc0",
                safe=True,
                width=3,
                size=2**70,
                mixed=1,
                nested={"a": 1},
            ),
            row("a", score=4.5, safe=None, width=-(2**63), mixed="x", nested=[1]),
            row("c", mixed=False, **{"odd \ud800 name": "odd \ud800 text"}),
        ]
    )
    assert table["key"].to_pylist() == ["a", "b", "c"]
    types = {
        field.name.removeprefix("meta."): str(field.type)
        for field in table.schema
        if field.name.startswith("meta.")
    }
    assert types == {
        "licence": "string", "mixed": "string", "odd \\ud800 name": "string", "safe": "bool",
        "score": "double", "size": "double", "width": "int64",
    }  # fmt: skip
    assert table["meta.score"].to_pylist() == [4.5, 5.0, None]
    assert table["meta.mixed"].to_pylist() == ["x", "1", "false"]
    assert table["meta.safe"].to_pylist() == [None, True, None]
    assert table["meta.width"].to_pylist() == [-(2**63), 3, None]
    assert table["meta.odd \\ud800 name"].to_pylist() == [None, None, "odd \\ud800 text"]


def test_of_too_many_metadata_columns_the_frequent_ones_stay() -> None:
    often = {f"often {n}": n for n in range(MAX_META_COLUMNS - 1)}
    table = index_table([row("a", **often, rare=1, rarer_by_name=2), row("b", **often)])
    names = {name.removeprefix("meta.") for name in table.column_names}
    assert names >= {*often, "rare"}
    assert "rarer_by_name" not in names


@pytest.mark.ray
def test_ray_makes_the_same_artifact_and_names_a_shard_that_fails(
    ray_cluster: None, tmp_path: Path
) -> None:
    import functools

    from data_pipelines.shards import on_ray, plan_tasks
    from transfusion.resources import PoolResources

    listing = shapes(tmp_path / "a")
    tokenizer = tokenizer_of(tmp_path / "a", listing)
    inputs = {"documents": listing, "tokenizer": tokenizer}
    there = make(tmp_path / "a", TOKENIZE, {}, inputs)
    same_shapes = make(tmp_path / "b", SHAPES, {"num_images": 24, "seed": 3, "images_per_shard": 8})
    here = make(
        tmp_path / "b",
        TOKENIZE,
        {},
        {"documents": same_shapes, "tokenizer": tokenizer_of(tmp_path / "b", same_shapes)},
        launch=in_process,
    )
    assert there.manifest.digest == here.manifest.digest

    tasks = plan_tasks(listing, version=1, config={}, upstream={})
    results = list(on_ray(functools.partial(Failing, tasks[1].key), tasks, PoolResources()))
    failed = {r.task.key: r.error for r in results if r.record is None}
    assert len(results) == 3
    assert failed == {
        task.key: "ValueError: broken" for task in tasks if task.key != tasks[1].key
    } | {tasks[1].key: failed[tasks[1].key]}
    assert "its process died 3 times" in failed[tasks[1].key]


class Failing:
    """Raises for every shard, and takes its process with it for one."""

    def __init__(self, fatal: str) -> None:
        self._fatal = fatal

    def make(self, task):
        import os

        if task.key == self._fatal:
            os._exit(1)
        raise ValueError("broken")
