"""What people and scripts are told of plans, runs and artifacts."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfusion.artifacts.artifact import Artifact, find_artifact, open_artifact
from transfusion.errors import ArtifactError, SpecError
from transfusion.runner.run import StageResult, summary
from transfusion.runner.show_mixture import mixture_summary, mixture_text
from transfusion.runner.show_sequences import example_sequences, sequences_text
from transfusion.spec.job import Job, read_job
from transfusion.spec.plan import PlannedStage, plan_job
from transfusion.stage import duration
from transfusion.storage.store import Store, open_store
from transfusion.train.checkpoints.unfinished import (
    UnfinishedRun,
    newest_checkpoint_step,
    read_unfinished,
)
from transfusion.train.loop_config import LoopConfig


def plan_text(plan: Sequence[PlannedStage], store: Store) -> str:
    """A line a stage: status, name, identity, and why."""
    width = max(len(planned.stage.name) for planned in plan)
    lines = [f"store {store.uri}"]
    for planned in plan:
        why = "; ".join(planned.reasons) if planned.status == "changed" else ""
        trains = planned.status != "cached" and isinstance(planned.stage.config, LoopConfig)
        step = newest_checkpoint_step(store, planned.path) if trains else 0
        lines.append(
            f"  {planned.status:8} {planned.stage.name:{width}}  {planned.fingerprint[:12]}  "
            f"{planned.stage.uses}{f'  ({why})' if why else ''}"
            f"{f'  goes on from step {step:,}' if step else ''}"
        )
    run = [planned.stage.name for planned in plan if planned.status != "cached"]
    lines.append(
        f"{len(run)} of {len(plan)} stages would run{f': {chr(44).join(run)}' if run else ''}"
    )
    return "\n".join(lines)


def results_text(
    results: Sequence[StageResult], job: Job, path: Path, overrides: Sequence[str] = ()
) -> str:
    """The end of a run: what ran, where the results are, and commands to go on with, overrides included."""
    store = open_store(job.file.store)
    lines = [summary(results)]
    shown = {"report": "report", "evaluation": "samples", "model": "model"}
    kinds = [result.artifact.kind for result in results]
    for result, kind in zip(results, kinds, strict=True):
        if kind in shown:
            which = f"  ({result.planned.stage.name})" if kinds.count(kind) > 1 else ""
            lines.append(f"{shown[kind]:8} {_place(store, result.artifact)}{which}")
    if "model" in kinds:
        named = shlex.join([str(path), *overrides])
        lines.append(f"serve it: transfusion serve {named}")
        lines.append(f'or draw:  transfusion sample {named} --prompt "..."')
    return "\n".join(lines)


def _place(store: Store, artifact: Artifact) -> str:
    """The address a person opens: the page of a report, the folder of anything else."""
    files = artifact.manifest.content.files
    for file in files:
        if file.name.endswith(".html"):
            return store.url(file.path)
    first = files[0]
    return store.url(first.path.removesuffix(first.name).rstrip("/"))


def job_status(path: Path, overrides: Sequence[str], *, examples: int = 0) -> dict[str, Any]:
    """`{"stages": {NAME: {"status", "fingerprint", "path", "metrics", ...}}}` of a job.

    With examples, what its mixtures came to beside it, as `{"mixtures": {NAME: ...}}`.
    """
    job = read_job(path, overrides)
    store = open_store(job.file.store)
    stages, mixtures = {}, {}
    for planned in plan_job(job, store):
        artifact = find_artifact(store, uses=planned.stage.uses, fingerprint=planned.fingerprint)
        if artifact and artifact.kind == "mixture" and examples:
            mixtures[planned.stage.name] = _described_mixture(artifact, examples)
        stages[planned.stage.name] = {
            "status": planned.status,
            "uses": planned.stage.uses,
            "fingerprint": planned.fingerprint,
            "path": store.url(planned.path),
            **(_described(artifact) if artifact else _not_made(planned, store)),
        }
    if examples and not mixtures:
        raise ArtifactError(f"{path}: --examples are of a mixture, and this job has made none yet")
    return {"job": job.name, "store": store.uri, "stages": stages, **_if_any(mixtures)}


def _not_made(planned: PlannedStage, store: Store) -> dict[str, Any]:
    found: dict[str, Any] = {"metrics": {}, "reasons": list(planned.reasons)}
    if (left := unfinished(planned, store)) is not None:
        found |= {
            "unfinished": {"step": left.last_step, "checkpoint_step": left.checkpoint_step},
            "metrics": left.last_values(),
        }
    return found


def unfinished(planned: PlannedStage, store: Store) -> UnfinishedRun | None:
    """What a training stage without an artifact has come to so far; None where it was not begun."""
    trains = isinstance(planned.stage.config, LoopConfig)
    return read_unfinished(store, planned.path) if trains else None


def artifact_status(address: str, *, examples: int = 0) -> dict[str, Any]:
    """One artifact, given by its folder, with its lineage down to the raw input; of a mixture, what it came to."""
    shown = open_address(address)
    store, path = shown.store, shown.path
    mixtures = {}
    if shown.kind == "mixture":
        mixtures[shown.manifest.stage] = _described_mixture(shown, examples)
    elif examples:
        raise ArtifactError(f"{address}: --examples are of a mixture, but this holds {shown.kind}")
    lineage: dict[str, Any] = {}
    ahead = [path]
    while ahead:
        artifact = open_artifact(store, f"{ahead.pop(0)}/manifest.json")
        manifest = artifact.manifest
        if artifact.path in lineage:
            continue
        lineage[artifact.path] = {
            "status": "cached",
            "name": manifest.stage,
            "uses": manifest.uses,
            "fingerprint": manifest.fingerprint,
            "path": store.url(artifact.path),
            **_described(artifact),
            "inputs": {role: reference.path for role, reference in manifest.inputs.items()},
        }
        ahead += [reference.path for reference in manifest.inputs.values()]
    return {"job": address, "store": store.uri, "stages": lineage, **_if_any(mixtures)}


def _described_mixture(artifact: Artifact, examples: int) -> dict[str, Any]:
    outcomes = artifact.manifest.content.outcomes
    return {
        **mixture_summary(artifact),
        "outcomes": outcomes.model_dump() if outcomes else None,
        "examples": example_sequences(artifact, examples) if examples else [],
    }


def _if_any(mixtures: dict[str, Any]) -> dict[str, Any]:
    return {"mixtures": mixtures} if mixtures else {}


def open_address(address: str) -> Artifact:
    """The artifact in a folder, given as `STORE/USES/FINGERPRINT`."""
    store_uri, path = split_address(address)
    return open_artifact(open_store(store_uri), f"{path}/manifest.json")


def split_address(address: str) -> tuple[str, str]:
    """Store and path of `.../<uses>/<fingerprint>[/...]`."""
    parts = address.rstrip("/").removesuffix("/manifest.json").split("/")
    for index in range(len(parts) - 1, 0, -1):
        uses = parts[index - 1]
        if uses.startswith(("transfusion.", "data_pipelines.")):
            return "/".join(parts[: index - 1]) or ".", f"{uses}/{parts[index]}"
    raise ArtifactError(f"{address}: is no artifact; it must read STORE/transfusion.x/FINGERPRINT")


def _described(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    outcomes = manifest.content.outcomes
    return {
        "digest": manifest.digest,
        "metrics": manifest.content.metrics,
        "metadata": manifest.content.metadata,
        "outcomes": outcomes.model_dump() if outcomes else None,
        "files": len(manifest.content.files),
        "bytes": sum(file.bytes for file in manifest.content.files),
        "timings": manifest.timings,
        "provenance": manifest.provenance,
    }


def status_text(status: dict[str, Any]) -> str:
    """The status for a terminal."""
    lines = [f"{status['job']}  in  {status['store']}"]
    for name, stage in status["stages"].items():
        took = stage.get("timings", {}).get("seconds")
        lines.append(
            f"\n{stage['status']:8} {stage.get('name', name)}  {stage['fingerprint'][:12]}"
            f"{f'  {duration(took)}' if took is not None else ''}\n         {stage['path']}"
        )
        if so_far := stage.get("unfinished"):
            lines.append(
                f"         not finished: measured up to step {so_far['step']:,}, the last checkpoint is of step "
                f"{so_far['checkpoint_step']:,}"
            )
        outcomes = stage.get("outcomes")
        if outcomes:
            refused = {**outcomes["filtered"], **outcomes["rejected"]}
            told = "".join(f", {count:,} {reason}" for reason, count in refused.items())
            lines.append(
                f"         {outcomes['written']:,} of {outcomes['input']:,} rows written{told}"
            )
        lines += [f"         {key:42} {value:.4g}" for key, value in stage["metrics"].items()]
        lines += [f"         {reason}" for reason in stage.get("reasons", ())]
    for mixture in status.get("mixtures", {}).values():
        lines.append(mixture_text(mixture, mixture["outcomes"]))
        if mixture["examples"]:
            lines.append(sequences_text(mixture["examples"]))
    return "\n".join(lines)


def model_folder(path: Path, overrides: Sequence[str] = ()) -> Path:
    """The local folder of a model package, given as such or as the job that made it.

    Raises:
        SpecError: The job makes no model, or more than one.
        ArtifactError: It was not made yet.
    """
    if path.suffix not in {".yaml", ".yml"}:
        if not (path / "config.json").is_file():
            raise ArtifactError(f"{path}: is no model package: it holds no config.json")
        return path
    job = read_job(path, overrides)
    models = [stage.name for stage in job.stages if stage.declaration.output == "model"]
    wanted = job.file.endpoint.model if job.file.endpoint else None
    name = wanted if wanted in models else models[0] if len(models) == 1 else None
    if name is None:
        raise SpecError(
            f"{path}: endpoint.model must name one of its models: {', '.join(models) or 'none'}"
        )
    store = open_store(job.file.store)
    planned = next(item for item in plan_job(job, store, until=name) if item.stage.name == name)
    artifact = find_artifact(store, uses=planned.stage.uses, fingerprint=planned.fingerprint)
    if artifact is None:
        raise ArtifactError(
            f"{path}: its model was not made yet; make it with: transfusion run "
            f"{shlex.join([str(path), *overrides])}"
        )
    return artifact.folder()
