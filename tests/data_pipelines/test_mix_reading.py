"""Who reads the index tables makes no difference: threads of this process, or a Ray Data job."""

import os
import signal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from data_pipelines.mix import reading, reading_on_ray
from data_pipelines.mix.candidates import Candidates, joined
from data_pipelines.mix.choice import ShardChoice, ShardPlace
from data_pipelines.mix.config import MixConfig
from data_pipelines.mix.reading_on_ray import MAX_DOCUMENTS, MAX_SHARDS, _batches
from data_pipelines.mix.takedown import Takedown
from tests.mixes import MIX, Doc, filtered, inputs_of, mix, pair, prose
from tests.pipeline import make, make_context
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError
from transfusion.resources import MixResources, Resources

ON_RAY = Resources(mix=MixResources(reading="ray"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Of everything: filters, phases, near duplicates, contamination, takedown, long pages, copies, misfits."""
    folder = tmp_path_factory.mktemp("reading")
    root = folder / "store"
    takedown = folder / "takedown.txt"
    takedown.write_text("007\npage 03\npairs/009\nnobody\n", "utf-8")
    # Each two look alike: the same hash but for a bit.
    looks = [(i // 2 * 0x9E3779B97F4A7C15 ^ i % 2) % 2**64 for i in range(70)]
    pairs = [
        pair(f"{i:03d}", tokens=1 + i, phash=looks[i], metadata={"score": i % 5}) for i in range(70)
    ]
    pages = [
        Doc(key=f"page {i:02d}", segments=tuple([3 + i, f"web {i}"] * (1 + i % 8)))
        for i in range(30)
    ]
    texts = [prose(f"text {i:03d}", tokens=10 + 7 * i, text=f"{i // 2}") for i in range(25)]
    return mix(
        root,
        {"pairs": pairs, "web": pages, "prose": texts},
        sources={"pairs": {"filters": [{"column": "score", "at_least": 1}]}},
        extra=inputs_of(root, "eval", [pair("x", phash=0xFF), prose("y", text="3")]),
        phases=[{"start_step": 8, "filters": {"pairs": [{"column": "score", "at_least": 3}]}}],
        deduplicate="near",
        near_bits=1,
        decontaminate=["eval", "eval_latents"],
        takedown=str(takedown),
        held_out_fraction=0.1,
        num_steps=20,
        layout={"clean_copies": True},
    )


def remade(mixture: Artifact, resources: Resources = ON_RAY, **changed: Any) -> Artifact:
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    config = {**mixture.manifest.config, **changed}
    return make(Path(mixture.store.uri), MIX, config, inputs, resources=resources)


def test_ray_and_threads_come_to_the_same_plan_to_the_bit(
    mixture: Artifact, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_on_ray, "MAX_SHARDS", 3)
    by_ray = remade(mixture)
    assert by_ray.manifest.content == mixture.manifest.content
    assert by_ray.manifest.digest == mixture.manifest.digest
    took = filtered(mixture)
    assert {"takedown", "filter.score", "duplicate", "near_duplicate", "contaminated"} <= set(took)
    outcomes = mixture.manifest.content.outcomes
    assert outcomes is not None
    assert outcomes.rejected == {"too_long": 15}
    rejects = load_table(mixture.store, mixture.entry("rejects"))
    assert rejects.num_rows == 15
    assert len(read_mixture(mixture).phases) == 2
    filters = {"pairs": [{"column": "scores", "at_least": 3}]}
    with pytest.raises(ArtifactError, match="no document has a column 'scores'; did you mean"):
        remade(mixture, phases=[{"start_step": 8, "filters": filters}])
    altered = next(
        file
        for file in mixture.input("prose").manifest.content.files
        if file.name.endswith("/index")
    )
    data = mixture.store.read(altered.path)
    mixture.store.write(altered.path, data[:-1] + b"?")
    try:
        with pytest.raises(ArtifactError, match="the file was altered or cut short"):
            remade(mixture)
    finally:
        mixture.store.write(altered.path, data)


class DeadlyChoice(ShardChoice):
    """Kills the process that reads shard 1 for the first time."""

    def read(self, place: ShardPlace) -> Candidates:
        if place.shard == 1 and self._store.create("killed", b"once"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(place)


def test_what_a_killed_worker_had_begun_is_read_again(
    mixture: Artifact, ray_cluster: None, tmp_path: Path
) -> None:
    config = MixConfig.model_validate(mixture.manifest.config)
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    takedown = Takedown([])
    context = make_context(mixture.store, MIX, scratch=tmp_path)
    expected = reading.read_sources(config, inputs, context, takedown=takedown, num_patches=4)
    choice = DeadlyChoice(config, inputs, takedown=takedown, store=mixture.store, num_patches=4)
    places = reading._places(config, inputs)
    parts = [part for _, part in reading_on_ray.read_on_ray(choice, places, context)]
    assert mixture.store.exists("killed")
    whole = joined(parts, range(len(places)))
    for name in ("shard", "row", "length", "identity", "content"):
        columns = [source.arrays()[name] for source in expected.values()]
        assert np.array_equal(whole.arrays()[name], np.concatenate(columns)), name


def test_ray_is_started_for_many_shards_alone(
    mixture: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def on_ray(choice: ShardChoice, places: list[ShardPlace], context: Any) -> Any:
        asked.append(len(places))
        return [(place.source, choice.read(place)) for place in places]

    monkeypatch.setattr("data_pipelines.mix.reading_on_ray.read_on_ray", on_ray)
    number = 9 + 4 + 4
    cases: list[tuple[int, Literal["auto", "threads", "ray"], list[int]]] = [
        (number, "auto", [number]),
        (number + 1, "auto", []),
        (0, "threads", []),
        (10**6, "ray", [number]),
    ]
    for least, way, expected in cases:
        asked.clear()
        monkeypatch.setattr(reading, "LEAST_SHARDS_ON_RAY", least)
        made = remade(mixture, Resources(mix=MixResources(reading=way)))
        assert asked == expected
        assert made.manifest.digest == mixture.manifest.digest


def place(source: str, shard: int, rows: int) -> ShardPlace:
    entry = FileEntry(name="n", path="p", sha256="s", bytes=1, rows=rows)
    return ShardPlace(source, shard, entry, None)


def test_tasks_are_shards_side_by_side_of_one_source_and_not_too_large() -> None:
    sizes = [100] * 150 + [MAX_DOCUMENTS] * 2 + [MAX_DOCUMENTS // 2] * 4 + [MAX_DOCUMENTS * 3]
    places = [place("a", i, rows) for i, rows in enumerate(sizes)]
    places += [place("b", len(sizes), 5)]
    batches = list(_batches(places))
    assert [shard for batch in batches for shard in batch] == places
    assert [len(batch) for batch in batches] == [MAX_SHARDS, MAX_SHARDS, 22, 1, 1, 2, 2, 1, 1]


def test_parts_are_joined_in_the_order_of_their_shards_and_none_may_be_missing(
    mixture: Artifact,
) -> None:
    config = MixConfig.model_validate(mixture.manifest.config)
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    choice = ShardChoice(config, inputs, takedown=Takedown([]), store=mixture.store, num_patches=4)
    places = [place for place in reading._places(config, inputs) if place.source == "web"]
    first = places[0].shard

    def parts(*order: int) -> list[Candidates]:
        return [choice.read(places[i]) for i in order]

    everything = range(first, first + 4)
    whole = joined(parts(0, 1, 2, 3), everything)
    assert len(whole.later_owner) > 20
    halves = [joined(parts(3, 2), everything[2:]), joined(parts(1, 0), everything[:2])]
    again = joined(halves, everything)
    assert halves == []
    for name, column in whole.arrays().items():
        assert np.array_equal(column, again.arrays()[name]), name
    assert (whole.filtered, whole.columns) == (again.filtered, again.columns)
    assert whole.rejects.equals(again.rejects)
    for wrong in ((0, 1, 2), (0, 1, 2, 2, 3), (0, 0, 2, 3)):
        with pytest.raises(ValueError, match="not each of"):
            joined(parts(*wrong), everything)
