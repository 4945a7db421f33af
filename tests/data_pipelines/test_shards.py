"""Runs over shards: what fails is tried again, then named or set apart; one that goes wrong stops."""

import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipelines.shard_starts import MAX_NODE_LOSSES, ShardStarts
from data_pipelines.shards import (
    Measured,
    ShardRun,
    ShardTask,
    attempt_shard,
    in_process,
    on_ray,
    run_shards,
    shards_at_once,
)
from data_pipelines.sources.source import ShardDescriptor
from tests.pipeline import make_context
from transfusion.artifacts.manifest import Content, Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, rejects_table
from transfusion.errors import ArtifactError, StoreRefusedError, StoreUnavailableError
from transfusion.resources import PoolResources, Resources
from transfusion.stage import StageContext
from transfusion.storage.store import open_store

USES = "data_pipelines.encode_images"


class CountRows:
    """Writes as many rows as the descriptor says, rejects as it says, or fails."""

    def __init__(self, context_store: object, pool: str, broken: frozenset[str]) -> None:
        self._pool = ShardPool(context_store, pool)
        self._broken = broken

    def make(self, task: ShardTask) -> ShardRecord | Measured:
        if task.shard_id in self._broken:
            raise OSError(f"cannot read {task.shard_id}")
        written, rejected = task.descriptor.spec["written"], task.descriptor.spec["rejected"]
        rejects = [Reject(f"{task.shard_id}/{n}", "truncated", "half") for n in range(rejected)]
        record = self._pool.commit(
            task.key,
            {ROWS: pa.table({"n": list(range(written))}), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=written + rejected,
                written=written,
                rejected={"truncated": rejected} if rejected else {},
            ),
            metadata={"notes": {"first_frame": 2}},
        )
        return Measured(record, busy_s=0.75, span_s=1.0)


class TwoAtOnce(CountRows):
    shards_at_once = 2


class Deadly(TwoAtOnce):
    """Ends its process at the broken shards, while another one is in the works."""

    def make(self, task: ShardTask) -> ShardRecord | Measured:
        if task.shard_id in self._broken:
            time.sleep(0.3)
            os._exit(1)
        time.sleep(0.2)
        return super().make(task)


def tasks(count: int, *, written: int = 10, rejected: int = 0) -> list[ShardTask]:
    return [
        ShardTask(
            f"key{n}",
            f"id{n}",
            ShardDescriptor(f"shard:{n}", {"written": written, "rejected": rejected}),
        )
        for n in range(count)
    ]


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return make_context(open_store(str(tmp_path / "store")), USES, scratch=tmp_path)


def run(
    context: StageContext,
    todo: list[ShardTask],
    *broken: str,
    worker: type = CountRows,
    **options: int,
) -> ShardRun:
    factory = functools.partial(worker, context.store, context.pool, frozenset(broken))
    return run_shards(
        context, tasks=todo, factory=factory, unit="rows counted", launch=in_process, **options
    )


def test_a_shard_that_keeps_failing_is_set_apart_where_the_config_allows_it(
    context: StageContext,
) -> None:
    made = run(context, tasks(5), "id3", max_quarantined=1).made({"side": 1})
    assert made.outcomes == Outcomes(input=40, written=40)
    assert made.metadata == {"side": 1, "quarantined": {"id3": "shard:3"}}
    *files, errors = made.files
    assert {file.name.partition("/")[0] for file in files} == {"id0", "id1", "id2", "id4"}
    assert errors.name == "quarantined.json"
    assert json.loads(context.store.read(errors.path)) == {
        "id3": {"shard": "shard:3", "error": "OSError: cannot read id3"}
    }


def test_how_an_error_reads_is_no_part_of_the_content(context: StageContext) -> None:
    def digest(worker: type) -> str:
        done = run(context, tasks(3), "id1", worker=worker, max_quarantined=1)
        made = done.made({})
        return Content(
            kind="latents",
            files=list(made.files),
            outcomes=made.outcomes,
            metadata=dict(made.metadata),
        ).digest()

    class OtherWords(CountRows):
        def make(self, task: ShardTask) -> ShardRecord | Measured:
            try:
                return super().make(task)
            except OSError:
                raise ValueError("at 0x7f12, pid 4711") from None

    assert digest(CountRows) == digest(OtherWords)


def test_more_failing_shards_than_allowed_fail_the_stage_after_all_others_are_made(
    context: StageContext,
) -> None:
    with pytest.raises(
        ArtifactError, match=r"stage: shard shard:2: .*cannot read id2 \(and 1 more\)"
    ):
        run(context, tasks(5), "id2", "id3", max_quarantined=1)
    done = ShardPool(context.store, context.pool).finished(task.key for task in tasks(5))
    assert sorted(done) == ["key0", "key1", "key4"]


def test_running_again_tries_a_quarantined_shard_again_and_nothing_else(
    context: StageContext, caplog: pytest.LogCaptureFixture
) -> None:
    run(context, tasks(5), "id3", max_quarantined=1)
    with caplog.at_level(logging.INFO):
        healed = run(context, tasks(5), max_quarantined=1).made({})
    assert "1 of 5 shards to make, 4 cached" in caplog.text
    assert healed.outcomes == Outcomes(input=50, written=50)
    assert "quarantined" not in healed.metadata


def test_a_run_that_rejects_too_much_stops_and_says_what_and_where(context: StageContext) -> None:
    launched: list[str] = []

    def watch(factory, todo, resources) -> Iterator:
        for result in in_process(factory, todo, resources):
            launched.append(result.task.shard_id)
            yield result

    def go(count: int) -> ShardRun:
        factory = functools.partial(CountRows, context.store, context.pool, frozenset())
        return run_shards(
            context,
            tasks=tasks(count, written=200, rejected=300),
            factory=factory,
            unit="rows counted",
            launch=watch,
        )

    with pytest.raises(ArtifactError) as caught:
        go(8)
    assert launched == ["id0", "id1"]
    message = str(caught.value)
    assert "600 of the first 1,000 rows were rejected" in message
    assert "max_reject_fraction 0.5: 600 truncated" in message
    assert str(context.store.url(context.pool)) in message
    # The same answer when all of it is there, and none once the profile allows it.
    with pytest.raises(ArtifactError, match="rows were rejected"):
        go(2)
    context.resources = Resources(pool=PoolResources(max_reject_fraction=0.7))
    assert go(8).made({}).outcomes == Outcomes(
        input=4000, written=1600, rejected={"truncated": 2400}
    )


def test_what_passed_on_the_way_passes_again_when_it_is_there(context: StageContext) -> None:
    # Of the last shard alone most is rejected, of all of them little; found again, it comes first.
    good, bad = tasks(4, written=1000)[:3], tasks(4, written=400, rejected=600)[3:]
    factory = functools.partial(CountRows, context.store, context.pool, frozenset())
    for todo in ([*good, *bad], [*bad, *good]):
        made = run_shards(
            context, tasks=todo, factory=factory, unit="rows counted", launch=in_process
        ).made({})
        assert made.outcomes == Outcomes(input=4000, written=3400, rejected={"truncated": 600})


def test_an_outage_of_the_store_is_tried_again_and_a_fault_of_the_data_is_not() -> None:
    class Faulty:
        def __init__(self, fault: Exception) -> None:
            self._fault = fault

        def make(self, task: ShardTask) -> ShardRecord:
            raise self._fault

    (task,) = tasks(1)
    away = attempt_shard(Faulty(StoreUnavailableError("away")), task)
    assert (away.outage, away.final) == (True, False)
    changed = attempt_shard(Faulty(ArtifactError("changed")), task)
    assert (changed.outage, changed.final) == (False, True)

    refused = attempt_shard(Faulty(StoreRefusedError("expired")), task)
    assert (refused.outage, refused.final) == (True, True)


class Away(CountRows):
    """Finds no store at the broken shards."""

    def make(self, task: ShardTask) -> ShardRecord | Measured:
        if task.shard_id in self._broken:
            raise StoreUnavailableError(f"s3://bucket/{task.shard_id}.tar: could not read")
        return super().make(task)


def test_an_outage_ends_the_run_and_sets_no_shard_aside(context: StageContext) -> None:
    with pytest.raises(
        StoreUnavailableError,
        match=r"stage: at shard shard:2: s3://bucket/id2\.tar: could not read",
    ):
        run(context, tasks(5), "id2", worker=Away, max_quarantined=5)
    done = ShardPool(context.store, context.pool).finished(task.key for task in tasks(5))
    assert sorted(done) == ["key0", "key1", "key3", "key4"]


def test_a_long_outage_ends_the_run_before_every_shard_has_waited_for_it(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def watch(factory, todo, resources) -> Iterator:
        for result in in_process(factory, todo, resources):
            tried.append(result.task.shard_id)
            yield result

    broken = frozenset(["id0", "id2", "id3", "id4"])
    factory = functools.partial(Away, context.store, context.pool, broken)
    monkeypatch.setattr("data_pipelines.shard_failures.MAX_OUTAGE_S", 0.0)
    with pytest.raises(StoreUnavailableError, match="at shard shard:3"):
        run_shards(context, tasks=tasks(5), factory=factory, unit="rows counted", launch=watch)
    # One that is made in between says that the store is there.
    assert tried == ["id0", "id1", "id2", "id3"]


def test_few_rows_may_all_be_rejected(context: StageContext) -> None:
    assert run(context, tasks(2, written=0, rejected=400)).made({}).outcomes.written == 0


def test_the_manifest_keeps_the_figures_that_people_were_shown(
    context: StageContext, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        made = run(context, tasks(4, rejected=1)).made({})
    assert made.timings["rows counted"] == 40
    assert made.timings["rows counted per second"] > 0
    assert made.timings["encoder busy share"] == 0.75
    assert made.timings["bytes written"] == sum(file.bytes for file in made.files)
    assert made.metrics == {"notes.first_frame": 8}


def test_a_worker_that_takes_two_shards_at_once_makes_the_same(context: StageContext) -> None:
    assert shards_at_once(functools.partial(TwoAtOnce, 1)) == 2
    assert shards_at_once(TwoAtOnce) == 2
    assert shards_at_once(CountRows) == 1
    two = run(context, tasks(7), worker=TwoAtOnce)
    assert [task.shard_id for task in two.tasks] == [f"id{n}" for n in range(7)]
    assert two.made({}).outcomes == Outcomes(input=70, written=70)


@pytest.mark.ray
def test_a_shard_that_kills_its_process_takes_no_other_with_it(
    ray_cluster: None, context: StageContext
) -> None:
    factory = functools.partial(Deadly, context.store, context.pool, frozenset(["id2"]))
    made = run_shards(
        context,
        tasks=tasks(6),
        factory=factory,
        unit="rows counted",
        launch=lambda *given: on_ray(*given[:2], PoolResources(num_actors=1)),
        max_quarantined=1,
    ).made({})
    assert made.outcomes == Outcomes(input=50, written=50)
    assert list(made.metadata["quarantined"]) == ["id2"]
    errors = context.store.read(made.files[-1].path).decode()
    assert "its process died 3 times" in errors


def test_a_shard_is_ended_by_three_deaths_of_its_process_whatever_nodes_are_lost() -> None:
    living = {"a"}
    starts = ShardStarts(lambda: living)
    assert starts.known("key") == (False, None)
    for spot in range(5):
        living.add(f"spot{spot}")
        assert starts.start("key", f"spot{spot}") == ""
        # Until the loss of the node is known it counts as a death.
        assert starts.known("key") == (True, None)
        living.remove(f"spot{spot}")
        assert starts.known("key") == (False, None)
    for _ in range(3):
        assert starts.start("key", "a") == ""
    assert starts.known("key") == (True, None)
    assert "its process died 3 times" in starts.start("key", "a")
    assert starts.start("another", "a") == ""


def test_a_shard_that_loses_every_node_is_not_begun_without_end() -> None:
    starts = ShardStarts(set)
    for number in range(MAX_NODE_LOSSES):
        assert starts.start("key", f"spot{number}") == ""
    assert f"its node was lost {MAX_NODE_LOSSES} times" in starts.start("key", "another")


def test_what_has_ended_is_known_and_owes_nothing() -> None:
    starts = ShardStarts(lambda: {"a"})
    starts.start("key", "a")
    starts.end("key", "made")
    assert starts.known("key") == (False, "made")


def test_a_pool_is_fixed_unless_it_may_grow() -> None:
    from data_pipelines.shards_on_ray import _pool

    fixed = _pool(PoolResources(num_actors=4), num_tasks=100, at_once=1)
    assert (fixed.min_size, fixed.max_size) == (4, 4)
    few = _pool(PoolResources(num_actors=4, max_actors=9), num_tasks=3, at_once=2)
    assert (few.min_size, few.max_size) == (3, 3)
    growing = _pool(PoolResources(num_actors=2, max_actors=9), num_tasks=5, at_once=2)
    assert (growing.min_size, growing.max_size) == (2, 5)
    assert growing.max_concurrent_calls_per_actor == 2
    assert growing.enable_true_multi_threading
