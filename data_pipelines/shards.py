"""Running a function over shards as a Ray Data job: what the stages that make shards share.

Rows of the job are shard descriptors, so no pixel passes through Ray: an actor reads, works and stores a
shard by itself, one at a time. A shard that is in the pool already is not touched, and when none is missing
neither is Ray. An exception inside a shard comes back as a row; the shard is tried again a few times, then
the stage fails and names it.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from data_pipelines.sources.source import ShardDescriptor, open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.canonical import fingerprint
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord, shard_key
from transfusion.errors import ArtifactError
from transfusion.stage import Made, PoolResources, StageContext

MAX_ATTEMPTS = 3
"""Tries of one shard in one run, crashes of its process included."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be made."""

    key: str
    """Its key in the pool: everything that determines its bytes."""

    shard_id: str
    """Names it in the artifact; the same in every artifact made from the same listing."""

    descriptor: ShardDescriptor


@runtime_checkable
class ShardWorker(Protocol):
    """Makes one shard at a time; holds what is costly to load."""

    def make(self, task: ShardTask) -> ShardRecord:
        """Reads, works, stores; the record is in the pool when this returns."""


WorkerFactory = Callable[[], ShardWorker]
"""Loads a worker inside its actor: a picklable `functools.partial` over a class and its arguments."""


@dataclass(frozen=True)
class Attempt:
    """What became of a task: a record, or why there is none."""

    task: ShardTask
    record: ShardRecord | None
    error: str = ""
    final: bool = False
    """Trying again would not help: the fault is in what was given."""


@dataclass(frozen=True)
class ShardRun:
    """Finished shards, and how it went."""

    tasks: Sequence[ShardTask]
    records: Sequence[ShardRecord]
    timings: Mapping[str, float]

    def made(self, metadata: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> Made:
        """What a stage hands back: its files under the shards' ids, and the sum of outcomes."""
        files: list[FileEntry] = []
        outcomes = Outcomes()
        for task, record in zip(self.tasks, self.records, strict=True):
            outcomes += record.outcomes
            files += [
                file.model_copy(update={"name": f"{task.shard_id}/{file.name}"})
                for file in record.files
            ]
        return Made(
            files=files,
            outcomes=outcomes,
            metadata=metadata,
            metrics=metrics or {},
            timings=self.timings,
        )


Launch = Callable[[WorkerFactory, Sequence[ShardTask], PoolResources], Iterator[Attempt]]
"""Runs a worker over tasks, in any order."""


def shard_id(descriptor: ShardDescriptor) -> str:
    """Names a shard of a listing in every artifact that is made from it."""
    return fingerprint(descriptor.identity)[:16]


def plan_tasks(
    listing: Artifact, *, version: int, config: Any, upstream: Mapping[str, Any]
) -> list[ShardTask]:
    """One task for each shard of a listing.

    Args:
        version: Of the stage.
        config: Identity of that part of the config that a shard depends on.
        upstream: Identities of what else a shard is made with, such as the tokenizer's digest.
    """
    source = {"uses": listing.manifest.uses, "version": listing.manifest.version}
    tasks = []
    for descriptor in open_listing(listing).shards:
        key = shard_key(
            version=version,
            config=config,
            shard=descriptor.identity,
            upstream={"source": source, **upstream},
        )
        tasks.append(ShardTask(key, shard_id(descriptor), descriptor))
    return tasks


def run_shards(
    context: StageContext,
    *,
    tasks: Sequence[ShardTask],
    factory: WorkerFactory,
    unit: str,
    launch: Launch,
) -> ShardRun:
    """Makes the shards that are missing.

    Args:
        unit: What is made of a shard's rows, such as `images encoded`; what progress counts.
        launch: `on_ray`, or `in_process` for a few small shards.

    Raises:
        ArtifactError: A shard failed; names it and the error.
    """
    what = context.uses.rpartition(".")[2]
    started = time.monotonic()
    repeated = len(tasks) - len({task.shard_id for task in tasks})
    if repeated:
        raise ArtifactError(f"{context.name}: {repeated} shards of the listing are listed twice")
    pool = ShardPool(context.store, context.pool)
    records = pool.finished(task.key for task in tasks)
    missing = [task for task in tasks if task.key not in records]
    if not missing:
        context.log.info(f"{what}: all {len(tasks):,} shards cached, 0 {unit}")
        return ShardRun(tasks, [records[task.key] for task in tasks], {f"{unit}": 0.0})
    cached = f", {len(records):,} cached" if records else ""
    context.log.info(f"{what}: {len(missing):,} of {len(tasks):,} shards to make{cached}")
    made = 0
    with context.progress(total=len(tasks), unit="shards") as progress:
        progress.start_at(len(records))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            failed = []
            for result in launch(factory, missing, context.resources.pool):
                if result.record is None:
                    failed.append(result)
                    continue
                records[result.task.key] = result.record
                made += result.record.outcomes.written
                rate = made / (time.monotonic() - started)
                progress.advance(1, **{unit: f"{made:,}", "a second": f"{rate:,.4g}"})
            if not failed:
                break
            _give_up_or_warn(context, failed, attempt)
            missing = [result.task for result in failed]
    seconds = time.monotonic() - started
    return ShardRun(
        tasks,
        [records[task.key] for task in tasks],
        {unit: float(made), f"{unit} per second": round(made / seconds, 2)},
    )


def _give_up_or_warn(context: StageContext, failed: Sequence[Attempt], attempt: int) -> None:
    worst = next((result for result in failed if result.final), failed[0])
    message = f"shard {worst.task.descriptor.identity}: {worst.error}"
    if worst.final or attempt == MAX_ATTEMPTS:
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ArtifactError(f"{context.name}: {message}{others}")
    context.log.warning(f"attempt {attempt} of {MAX_ATTEMPTS}: {message}; trying again")


def attempt_shard(worker: ShardWorker, task: ShardTask) -> Attempt:
    """Makes a shard; a fault becomes a row, so that it is not retried without end by Ray."""
    try:
        return Attempt(task, worker.make(task))
    except ArtifactError as error:
        return Attempt(task, None, str(error), final=True)
    except Exception as error:
        return Attempt(task, None, f"{type(error).__name__}: {error}")


def in_process(
    factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
) -> Iterator[Attempt]:
    """Runs the shards one after the other, here."""
    del resources
    worker = factory()
    for task in tasks:
        yield attempt_shard(worker, task)


def on_ray(
    factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
) -> Iterator[Attempt]:
    """Runs the shards on a fixed pool of actors, as a Ray Data job."""
    import ray
    import ray.data

    _quiet(ray.data.DataContext.get_current())
    num_actors = min(resources.num_actors, len(tasks))
    memory = resources.memory_per_actor_gib
    counter = ray.remote(_Counter).options(num_cpus=0).remote()
    by_key = {task.key: task for task in tasks}
    rows = [{"task": _to_json(task)} for task in tasks]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardActor,
        batch_size=1,
        batch_format="pyarrow",
        # A pool that scales can stay at one actor for ever (ray-project/ray#59144).
        compute=ray.data.ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=2),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor or None,
        memory=None if memory is None else memory * 2**30,
        fn_constructor_args=(factory, counter),
    )
    told: set[str] = set()
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in batch["result"].to_pylist():
            result = json.loads(text)
            task = by_key[result["key"]]
            if task.key in told:
                continue
            told.add(task.key)
            record = result["record"]
            yield Attempt(
                task,
                ShardRecord.model_validate(record) if record else None,
                result["error"],
                result["final"],
            )
    ray.kill(counter)


class _ShardActor:
    """Columns in: `task` str JSON. Columns out: `result` str JSON."""

    def __init__(self, factory: WorkerFactory, counter: Any) -> None:
        self._worker = factory()
        self._counter = counter

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        results = [self._run(_from_json(text)) for text in batch["task"].to_pylist()]
        return pa.table({"result": results})

    def _run(self, task: ShardTask) -> str:
        import ray

        # Ray starts a task of a dead actor again without end: a shard that kills its process would be
        # tried for ever. So starts are counted outside the process.
        if ray.get(self._counter.start.remote(task.key)) > MAX_ATTEMPTS:
            error = (
                f"its process died {MAX_ATTEMPTS} times: out of memory (raise "
                "pool.memory_per_actor_gib or make smaller shards) or a crash in a decoder"
            )
            attempt = Attempt(task, None, error, final=True)
        else:
            attempt = attempt_shard(self._worker, task)
            ray.get(self._counter.end.remote(task.key))
        record = attempt.record
        return json.dumps(
            {
                "key": task.key,
                "record": record.model_dump(mode="json") if record else None,
                "error": attempt.error,
                "final": attempt.final,
            }
        )


class _Counter:
    """Counts how often each shard was started and not ended."""

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}

    def start(self, key: str) -> int:
        self._starts[key] = self._starts.get(key, 0) + 1
        return self._starts[key]

    def end(self, key: str) -> None:
        self._starts.pop(key, None)


def _quiet(settings: Any) -> None:
    """Settings that matter, on purpose rather than by default."""
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.enable_auto_log_stats = False
    settings.execution_options.preserve_order = False
    # A dropped block would be a dropped shard.
    settings.max_errored_blocks = 0
    # Half an hour without a result is no fault: a large shard, or a wait for GPU nodes.
    settings.execution_no_progress_timeout_s = -1


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
