"""Running a function over shards as a job: what the stages that make shards share.

A worker reads, works and stores a shard by itself; through Ray pass descriptors and records, no pixels. A shard
that is in the pool already is not touched, and when none is missing neither is Ray. An exception inside a shard
comes back as a value; the shard is tried again a few times, then the stage fails and names it, or goes on
without it where its config allows that. An outage of the store is never held against a shard: it ends the run.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from data_pipelines.shard_failures import Failures
from data_pipelines.shard_tally import Tally
from data_pipelines.sources.source import ShardDescriptor, open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.canonical import fingerprint
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.pool import PAGE_RECORDS, ShardPool, ShardRecord, shard_key
from transfusion.errors import ArtifactError, StoreRefusedError, StoreUnavailableError
from transfusion.resources import PoolResources
from transfusion.stage import Made, StageContext

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


class Measured(NamedTuple):
    """A finished shard, and how well the worker's dear part (its encoder) was used."""

    record: ShardRecord
    busy_s: float
    """Seconds that it was at work for this shard."""
    span_s: float
    """Seconds since it had ended the shard before, or since the worker began."""


@runtime_checkable
class ShardWorker(Protocol):
    """Makes shards; holds what is costly to load.

    A class with the attribute `shards_at_once` is called from as many threads.
    """

    def make(self, task: ShardTask) -> ShardRecord | Measured:
        """Reads, works, stores; the record is in the pool when this returns."""


WorkerFactory = Callable[[], ShardWorker]
"""Loads a worker inside its actor: a picklable `functools.partial` over a class and its arguments."""


def shards_at_once(factory: WorkerFactory) -> int:
    """How many shards a worker of this factory makes side by side."""
    made = factory.func if isinstance(factory, functools.partial) else factory
    return getattr(made, "shards_at_once", 1)


@dataclass(frozen=True)
class Attempt:
    """What became of a task: a record, or why there is none."""

    task: ShardTask
    record: ShardRecord | None
    error: str = ""
    final: bool = False
    """Trying again would not help: the fault is in what was given."""
    outage: bool = False
    """A store did not answer, or refuses us: no fault of the shard's."""
    busy_s: float = 0.0
    span_s: float = 0.0
    """Both as in `Measured`."""


@dataclass(frozen=True)
class ShardRun:
    """Finished shards, and how it went."""

    tasks: Sequence[ShardTask]
    records: Mapping[str, ShardRecord]
    """By the task's key; of a quarantined shard there is none."""
    quarantined: Mapping[str, str]
    """Identities of the shards that were set aside, by the shard's id."""
    timings: Mapping[str, float]
    errors: FileEntry | None = None
    """Why they were set aside. Outside the digest: the same fault may read differently the next time."""

    def made(self, metadata: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> Made:
        """What a stage hands back: its files under the shards' ids, the sums of outcomes and of decoders' notes.

        The rows of quarantined shards were never read, so no outcome counts them: metadata lists the shards.
        """
        files: list[FileEntry] = []
        outcomes = Outcomes()
        notes: dict[str, float] = {}
        for task in self.tasks:
            if (record := self.records.get(task.key)) is None:
                continue
            outcomes += record.outcomes
            for note, count in record.metadata.get("notes", {}).items():
                notes[f"notes.{note}"] = notes.get(f"notes.{note}", 0.0) + count
            files += [
                file.model_copy(update={"name": f"{task.shard_id}/{file.name}"})
                for file in record.files
            ]
        if self.quarantined:
            metadata = {**metadata, "quarantined": dict(sorted(self.quarantined.items()))}
        if self.errors:
            files.append(self.errors)
        return Made(
            files=files,
            outcomes=outcomes,
            metadata=metadata,
            metrics={**notes, **(metrics or {})},
            timings=self.timings,
        )


Launch = Callable[[WorkerFactory, Sequence[ShardTask], PoolResources], Iterator[Attempt]]
"""Runs a worker over tasks, in any order."""


def shard_id(descriptor: ShardDescriptor) -> str:
    """Names a shard of a listing in every artifact that is made from it."""
    return fingerprint(descriptor.identity)[:16]


def plan_tasks(
    listing: Artifact,
    *,
    version: int,
    config: Any,
    upstream: Mapping[str, Any],
    with_metadata: bool = False,
    beside: Mapping[str, FileEntry] | None = None,
) -> list[ShardTask]:
    """One task for each shard of a listing.

    Args:
        version: Of the stage.
        config: Identity of that part of the config that a shard depends on.
        upstream: Identities of what else a shard is made with, such as the tokenizer's digest.
        with_metadata: Whether the rows' metadata are kept: then they too decide the shard's bytes.
        beside: By the shard's id, the file of another artifact of the same listing that it is made with; a shard
            that has none is left out.
    """
    source = {"uses": listing.manifest.uses, "version": listing.manifest.version}
    tasks = []
    for descriptor in open_listing(listing).shards:
        kept: dict[str, Any] = {}
        if with_metadata and descriptor.metadata:
            kept["metadata"] = descriptor.metadata
        if beside is not None:
            if shard_id(descriptor) not in beside:
                continue
            kept["beside"] = beside[shard_id(descriptor)].digest
        key = shard_key(
            version=version,
            config=config,
            shard=descriptor.identity,
            upstream={"source": source, **upstream, **kept},
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
    max_quarantined: int = 0,
) -> ShardRun:
    """Makes the shards that are missing.

    Args:
        unit: What is made of a shard's rows, such as `images encoded`; what progress counts.
        launch: `on_ray`, or `in_process` for a few small shards.
        max_quarantined: Shards that may be without a record in the end.

    Raises:
        ArtifactError: More shards failed; names one and its error. Or too large a part of the rows was rejected.
        StoreUnavailableError: A store was away, or refuses us; names what it was asked for.
    """
    what = context.uses.rpartition(".")[2]
    repeated = len(tasks) - len({task.shard_id for task in tasks})
    if repeated:
        raise ArtifactError(f"{context.name}: {repeated} shards of the listing are listed twice")
    pool = ShardPool(context.store, context.pool)
    records = pool.finished(task.key for task in tasks)
    tally = Tally(context, unit)
    for record in records.values():
        tally.found(record)
    tally.check()
    missing = [task for task in tasks if task.key not in records]
    missing = missing or _damaged(context, pool, tasks, records)
    if not missing:
        context.log.info(f"{what}: all {len(tasks):,} shards cached, 0 {unit}")
        return ShardRun(tasks, records, {}, {unit: 0.0})
    cached = f", {len(records):,} cached" if records else ""
    context.log.info(f"{what}: {len(missing):,} of {len(tasks):,} shards to make{cached}")
    failures = Failures(context, max_quarantined)
    unpaged: list[ShardRecord] = []
    with context.progress(total=len(tasks), unit="shards") as progress:
        progress.start_at(len(records))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            failed = []
            for result in launch(factory, missing, context.resources.pool):
                if result.record is None:
                    failures.note(result)
                    failed.append(result)
                    continue
                failures.none()
                records[result.task.key] = result.record
                unpaged.append(result.record)
                if len(unpaged) == PAGE_RECORDS:
                    pool.keep(unpaged)
                    unpaged.clear()
                tally.made(result.record, busy_s=result.busy_s, span_s=result.span_s)
                progress.advance(1, **tally.shown())
            lost = [f for f in failed if f.final or attempt == MAX_ATTEMPTS]
            failures.set_aside(lost)
            missing = [f.task for f in failed if f not in lost]
            missing = missing or _damaged(context, pool, tasks, records)
            if not missing:
                break
            if not failed:
                continue
            error = f"shard {failed[0].task.descriptor.identity}: {failed[0].error}; trying again"
            context.log.warning(f"attempt {attempt} of {MAX_ATTEMPTS}: {error}")
        else:
            raise ArtifactError(
                f"{context.name}: {len(missing):,} shards lost data while others were made; find out what "
                f"deletes below {context.store.url(context.pool)} (a lifecycle rule?), then run it again"
            )
    errors = failures.told()
    return ShardRun(tasks, records, failures.quarantined, tally.timings(), errors)


def _damaged(
    context: StageContext,
    pool: ShardPool,
    tasks: Sequence[ShardTask],
    records: dict[str, ShardRecord],
) -> list[ShardTask]:
    """Shards of which data were deleted or cut short behind their records; those are taken back."""
    damaged = pool.withdraw_damaged(records.values())
    if damaged:
        context.log.warning(f"{len(damaged):,} shards have lost data: they are made again")
    for key in damaged:
        del records[key]
    return [task for task in tasks if task.key in damaged]


def attempt_shard(worker: ShardWorker, task: ShardTask) -> Attempt:
    """Makes a shard; a fault becomes a value, so that it is not retried without end by Ray."""
    try:
        made = worker.make(task)
    except StoreUnavailableError as error:
        return Attempt(task, None, str(error), outage=True)
    except StoreRefusedError as error:
        return Attempt(task, None, str(error), outage=True, final=True)
    except ArtifactError as error:
        return Attempt(task, None, str(error), final=True)
    except Exception as error:
        return Attempt(task, None, f"{type(error).__name__}: {error}")
    if isinstance(made, Measured):
        return Attempt(task, made.record, busy_s=made.busy_s, span_s=made.span_s)
    return Attempt(task, made)


def in_process(
    factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
) -> Iterator[Attempt]:
    """Runs the shards here, in as many threads as the worker takes."""
    del resources
    worker = factory()
    with ThreadPoolExecutor(shards_at_once(factory)) as threads:
        yield from threads.map(functools.partial(attempt_shard, worker), tasks)


def on_ray(
    factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
) -> Iterator[Attempt]:
    """Runs the shards on a pool of actors, as a Ray Data job."""
    from data_pipelines.shards_on_ray import attempts

    return attempts(factory, tasks, resources)
