"""Running a plan here: each stage that is not there yet, in order; the manifest last."""

import functools
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transfusion.artifacts.artifact import Artifact, find_artifact
from transfusion.artifacts.canonical import canonical_json
from transfusion.artifacts.manifest import Content, InputRef, Manifest, manifest_path
from transfusion.errors import ArtifactError, SpecError
from transfusion.resources import Resources
from transfusion.runner.cluster import start_ray
from transfusion.runner.progress import make_progress
from transfusion.spec.job import Job
from transfusion.spec.plan import PlannedStage, plan_job
from transfusion.spec.stages import load_function
from transfusion.stage import Made, StageContext, duration
from transfusion.storage.store import Store, open_store
from transfusion.train.loop_config import LoopConfig


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What became of a stage in this run."""

    planned: PlannedStage
    artifact: Artifact
    ran: bool
    seconds: float


def run_job(
    job: Job, *, resources: Resources, until: str | None = None, log: logging.Logger
) -> list[StageResult]:
    """Makes every artifact of the job that is not there yet.

    Running it again is the recovery from any crash: finished stages are found, finished shards of an
    unfinished stage too, training goes on from its last checkpoint.

    Raises:
        SpecError: The job or its raw input is at fault.
        ArtifactError: An artifact on the way is missing or altered, or a stage's work failed.
    """
    store = open_store(job.file.store)
    plan = plan_job(job, store, until=until)
    check_workers(plan, resources)
    if any(planned.status != "cached" for planned in plan):
        protection = store.probe()
        if protection == "last-writer-wins":
            log.info(
                f"{store.uri} ignores conditional writes: of two runs at once, the last writer wins"
            )
    results: list[StageResult] = []
    artifacts: dict[str, Artifact] = {}
    for planned in plan:
        result = _run_stage(planned, artifacts, store=store, resources=resources, log=log)
        artifacts[planned.stage.name] = result.artifact
        results.append(result)
    return results


def check_workers(plan: Sequence[PlannedStage], resources: Resources) -> None:
    """Whether all workers have a part in what is still to be trained.

    Raises:
        SpecError: With every stage where they have not.
    """
    by_name = {planned.stage.name: planned.stage for planned in plan}
    workers, faults = resources.train.num_workers, []
    for planned in plan:
        stage = planned.stage
        if planned.status == "cached" or not isinstance(stage.config, LoopConfig):
            continue
        split = by_name[stage.inputs["mixture"]] if "mixture" in stage.inputs else stage
        lanes = getattr(split.config, "lanes", workers)
        if workers > lanes:
            faults.append(
                f"stages.{split.name}.config.lanes: {workers} workers for {lanes} lanes: the rest would idle; set "
                f"train.num_workers in the profile to at most {lanes}, or raise the lanes"
            )
    if faults:
        raise SpecError(faults)


def _run_stage(
    planned: PlannedStage,
    artifacts: dict[str, Artifact],
    *,
    store: Store,
    resources: Resources,
    log: logging.Logger,
) -> StageResult:
    stage = planned.stage
    config = stage.config.resolved()
    stage_log = log.getChild(stage.name)
    found = find_artifact(store, uses=stage.uses, fingerprint=planned.fingerprint, config=config)
    if found is not None:
        rows = found.manifest.content.outcomes
        stage_log.info(f"cached: {rows.written:,} rows there, 0 made" if rows else "cached")
        return StageResult(planned=planned, artifact=found, ran=False, seconds=0.0)
    started = time.monotonic()
    stage_log.info(
        f"{planned.status}: {', '.join(planned.reasons) or stage.declaration.summary or stage.uses}"
    )
    start = functools.partial(start_ray, num_cpus=resources.num_cpus, log=log)
    if stage.declaration.needs_ray:
        start()
    inputs = {role: artifacts[name] for role, name in stage.inputs.items()}
    scratch = Path(tempfile.mkdtemp(prefix=f"transfusion-{stage.name}-"))
    try:
        context = StageContext(
            name=stage.name,
            uses=stage.uses,
            version=stage.declaration.version,
            fingerprint=planned.fingerprint,
            raw=planned.payload.get("raw"),
            store=store,
            resources=resources,
            scratch=scratch,
            log=stage_log,
            progress=make_progress(stage_log),
            start_ray=start,
        )
        made = load_function(stage.declaration.body)(stage.config, inputs, context)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - started
    _commit(planned, made, inputs, store=store, seconds=seconds)
    artifact = find_artifact(store, uses=stage.uses, fingerprint=planned.fingerprint, config=config)
    assert artifact is not None
    stage_log.info(f"done in {duration(seconds)}{_outcome(made)}")
    return StageResult(planned=planned, artifact=artifact, ran=True, seconds=seconds)


def _commit(
    planned: PlannedStage, made: Made, inputs: dict[str, Artifact], *, store: Store, seconds: float
) -> None:
    stage = planned.stage
    if made.outcomes is not None:
        made.outcomes.check(f"stage {stage.name}")
    content = Content(
        kind=stage.declaration.output,
        files=list(made.files),
        outcomes=made.outcomes,
        metadata=dict(made.metadata),
        metrics=dict(made.metrics),
    )
    manifest = Manifest(
        stage=stage.name,
        uses=stage.uses,
        version=stage.declaration.version,
        fingerprint=planned.fingerprint,
        payload=planned.payload,
        config=stage.config.resolved(),
        inputs={
            role: InputRef(fingerprint=artifact.manifest.fingerprint, path=artifact.path)
            for role, artifact in inputs.items()
        },
        content=content,
        digest=content.digest(),
        timings={"seconds": round(seconds, 3), **made.timings},
        provenance=provenance(),
    )
    path = manifest_path(stage.uses, planned.fingerprint)
    if store.create(path, canonical_json(manifest.model_dump(mode="json")).encode()):
        return
    # Another run finished first. Both are the same work, so they must agree.
    winner = Manifest.model_validate_json(store.read(path))
    if winner.digest != manifest.digest:
        raise ArtifactError(
            f"{store.url(path)}: another run made something else from the same inputs "
            f"({winner.digest[:12]}, here {manifest.digest[:12]}); theirs stands"
        )


def _outcome(made: Made) -> str:
    if made.outcomes is None:
        return ""
    outcomes = made.outcomes
    told = [f"{outcomes.written:,} of {outcomes.input:,} rows written"]
    told += [
        f"{count:,} {reason}"
        for reason, count in {**outcomes.filtered, **outcomes.rejected}.items()
    ]
    return f": {', '.join(told)}"


def provenance() -> dict[str, Any]:
    """Where and by what code something was made. Recorded, never hashed."""
    versions = {}
    for package in ("transfusion", "torch", "ray", "diffusers", "pyarrow", "sentencepiece"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit_id(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
    }


def _commit_id() -> str:
    told = os.environ.get("TRANSFUSION_COMMIT")
    git = shutil.which("git")
    if told or git is None:
        return told or "unknown"
    here = Path(__file__).parent
    done = subprocess.run(  # noqa: S603
        [git, "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def summary(results: Sequence[StageResult]) -> str:
    """One line on what ran and what was there."""
    ran = [result for result in results if result.ran]
    seconds = sum(result.seconds for result in ran)
    cached = len(results) - len(ran)
    if not ran:
        return f"all {cached} stages cached, nothing to do"
    return f"{len(ran)} stages ran in {duration(seconds)}, {cached} cached"


def configure_logging() -> logging.Logger:
    """The log that people read: time, stage, message; on standard error."""
    log = logging.getLogger("transfusion.job")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Short("%(asctime)s  %(name)-14s  %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


class _Short(logging.Formatter):
    """Shows `transfusion.job.latents` as `latents`."""

    def format(self, record: logging.LogRecord) -> str:
        record = logging.makeLogRecord(record.__dict__)
        record.name = record.name.removeprefix("transfusion.job").lstrip(".") or "job"
        return super().format(record)
