"""The shards of a stage as a Ray Data job: rows are shard descriptors, results are records."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.shards import (
    MAX_ATTEMPTS,
    Attempt,
    ShardTask,
    WorkerFactory,
    attempt_shard,
    shards_at_once,
)
from data_pipelines.sources.source import ShardDescriptor
from transfusion.artifacts.pool import ShardRecord
from transfusion.stage import PoolResources

MAX_BLOCKS = 10_000
"""A block of the job costs its driver 4 ms of CPU and 11 KB (measured, 2,000 against 500 of them). Up to this
number a shard is a block, and its result is known as soon as it is there; beyond, some shards share one."""


def attempts(
    factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
) -> Iterator[Attempt]:
    """What became of each shard, as it ends."""
    import ray
    import ray.data

    _set(ray.data.DataContext.get_current())
    counter = (
        ray.remote(_Counter).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    )
    by_key = {task.key: task for task in tasks}
    rows = [{"task": _to_json(task)} for task in tasks]
    memory = resources.memory_per_actor_gib
    num_blocks = min(len(rows), MAX_BLOCKS)
    results = ray.data.from_items(rows, override_num_blocks=num_blocks).map_batches(
        _ShardActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=_pool(resources, num_tasks=len(tasks), at_once=shards_at_once(factory)),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor or None,
        # What an actor reserves of a machine's memory, not a limit; without it Ray places by CPUs alone.
        memory=None if memory is None else memory * 2**30,
        fn_constructor_args=(factory, shards_at_once(factory), counter),
    )
    told: set[str] = set()
    try:
        for batch in results.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for text in batch["result"].to_pylist():
                key, attempt = _attempt(text, by_key)
                if key not in told:
                    told.add(key)
                    yield attempt
    finally:
        ray.kill(counter)


def _pool(resources: PoolResources, *, num_tasks: int, at_once: int) -> Any:
    from ray.data import ActorPoolStrategy

    least = min(resources.num_actors, num_tasks)
    most = max(least, min(resources.max_actors or least, num_tasks))
    threads = {
        # One more waits in the actor, so that none of its threads waits for the driver.
        "max_tasks_in_flight_per_actor": at_once + 1,
        "max_concurrent_calls_per_actor": at_once,
        "enable_true_multi_threading": at_once > 1,
    }
    if most == least:
        return ActorPoolStrategy(size=least, **threads)
    return ActorPoolStrategy(min_size=least, max_size=most, **threads)


class _ShardActor:
    """Columns in: `task` str JSON. Columns out: `result` str JSON."""

    def __init__(self, factory: WorkerFactory, at_once: int, counter: Any) -> None:
        self._worker = factory()
        self._counter = counter
        self._at_once, self._free = at_once, threading.Semaphore(at_once)
        self._door = threading.Lock()

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        results = [self._run(_from_json(text)) for text in batch["task"].to_pylist()]
        return pa.table({"result": results})

    def _run(self, task: ShardTask) -> str:
        import ray

        deaths, result = ray.get(self._counter.known.remote(task.key))
        if result is not None:
            return result
        # Of several shards whose process died any may be to blame, so each of them is tried alone.
        with self._places(self._at_once if deaths else 1):
            # Ray starts a task of a dead actor again without end: a shard that kills its process would be
            # tried for ever. So starts are counted outside the process.
            if ray.get(self._counter.start.remote(task.key)) > MAX_ATTEMPTS:
                error = (
                    f"its process died {MAX_ATTEMPTS} times, most likely out of memory: raise "
                    "pool.memory_per_actor_gib or make smaller shards"
                )
                return _to_text(Attempt(task, None, error, final=True))
            result = _to_text(attempt_shard(self._worker, task))
            ray.get(self._counter.end.remote(task.key, result))
        return result

    @contextlib.contextmanager
    def _places(self, count: int) -> Iterator[None]:
        with self._door:
            for _ in range(count):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(count)


class _Counter:
    """Remembers, apart from the actors, how often each shard was started and what came of it.

    Ray runs a block again when its actor dies inside it, or when its result is lost with a machine; what is
    known already is not made again.
    """

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}
        self._results: dict[str, str] = {}

    def known(self, key: str) -> tuple[int, str | None]:
        return self._starts.get(key, 0), self._results.get(key)

    def start(self, key: str) -> int:
        self._starts[key] = self._starts.get(key, 0) + 1
        return self._starts[key]

    def end(self, key: str, result: str) -> None:
        self._starts.pop(key, None)
        self._results[key] = result


def _set(settings: Any) -> None:
    """Settings that matter, on purpose rather than by default."""
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.enable_auto_log_stats = False
    # Results carry their key: none waits for one that was begun before it.
    settings.execution_options.preserve_order = False
    # A dropped block would be a dropped shard.
    settings.max_errored_blocks = 0
    # Half an hour without a result is no fault: a large shard, or a wait for GPU nodes.
    settings.execution_no_progress_timeout_s = -1


def _to_text(attempt: Attempt) -> str:
    record = attempt.record
    return json.dumps(
        {
            "key": attempt.task.key,
            "record": record.model_dump(mode="json") if record else None,
            "error": attempt.error,
            "final": attempt.final,
            "busy_s": attempt.busy_s,
            "span_s": attempt.span_s,
        }
    )


def _attempt(text: str, by_key: Mapping[str, ShardTask]) -> tuple[str, Attempt]:
    value = json.loads(text)
    key, record = value.pop("key"), value.pop("record")
    return key, Attempt(
        by_key[key], ShardRecord.model_validate(record) if record else None, **value
    )


def _to_json(task: ShardTask) -> str:
    return json.dumps(
        {"key": task.key, "shard_id": task.shard_id, "descriptor": task.descriptor.to_json()}
    )


def _from_json(text: str) -> ShardTask:
    value = json.loads(text)
    return ShardTask(
        key=value["key"],
        shard_id=value["shard_id"],
        descriptor=ShardDescriptor.from_json(value["descriptor"]),
    )
