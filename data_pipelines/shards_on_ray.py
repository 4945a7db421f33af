"""The shards of a stage as a Ray Data job: rows are shard descriptors, results are records."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.ray_settings import set_on_purpose
from data_pipelines.shard_starts import ShardStarts
from data_pipelines.shards import (
    Attempt,
    ShardTask,
    WorkerFactory,
    attempt_shard,
    shards_at_once,
)
from data_pipelines.sources.source import ShardDescriptor
from transfusion.artifacts.pool import ShardRecord
from transfusion.resources import PoolResources

MAX_BLOCKS = 10_000
"""A block of the job costs its driver 4 ms of CPU and 11 KB (measured, 2,000 against 500 of them). Up to this
number a shard is a block, and its result is known as soon as it is there; beyond, some shards share one."""


def attempts(
    factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
) -> Iterator[Attempt]:
    """What became of each shard, as it ends."""
    import ray
    import ray.data

    set_on_purpose(ray.data.DataContext.get_current())
    starts = (
        ray.remote(ShardStarts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
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
        fn_constructor_args=(factory, shards_at_once(factory), starts),
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
        ray.kill(starts)


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

    def __init__(self, factory: WorkerFactory, at_once: int, starts: Any) -> None:
        self._worker = factory()
        self._starts = starts
        self._at_once, self._free = at_once, threading.Semaphore(at_once)
        self._door = threading.Lock()

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        results = [self._run(_from_json(text)) for text in batch["task"].to_pylist()]
        return pa.table({"result": results})

    def _run(self, task: ShardTask) -> str:
        import ray

        deadly, result = ray.get(self._starts.known.remote(task.key))
        if result is not None:
            return result
        node = ray.get_runtime_context().get_node_id()
        # Of several shards whose process died any may be to blame, so each of them is tried alone.
        with self._places(self._at_once if deadly else 1):
            if refusal := ray.get(self._starts.start.remote(task.key, node)):
                return _to_text(Attempt(task, None, refusal, final=True))
            result = _to_text(attempt_shard(self._worker, task))
            ray.get(self._starts.end.remote(task.key, result))
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


def _to_text(attempt: Attempt) -> str:
    record = attempt.record
    return json.dumps(
        {
            "key": attempt.task.key,
            "record": record.model_dump(mode="json") if record else None,
            "error": attempt.error,
            "final": attempt.final,
            "outage": attempt.outage,
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
