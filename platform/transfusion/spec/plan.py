"""The plan: the identity of every stage, what is there already, and why the rest is not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from transfusion.artifacts.canonical import fingerprint
from transfusion.artifacts.manifest import Manifest, artifact_path, manifest_path
from transfusion.config import flattened, is_location
from transfusion.errors import ArtifactError, SpecError
from transfusion.spec.job import Job, JobStage
from transfusion.spec.stages import load_function
from transfusion.storage.store import Store

Status = Literal["cached", "new", "changed"]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage with its identity and its state in the store."""

    stage: JobStage
    payload: dict[str, Any]
    fingerprint: str
    status: Status
    reasons: tuple[str, ...] = ()
    """For `changed`: what differs from the nearest artifact that this stage made before."""

    @property
    def path(self) -> str:
        """The artifact's folder, relative to the store."""
        return artifact_path(self.stage.uses, self.fingerprint)


def plan_job(job: Job, store: Store, *, until: str | None = None) -> list[PlannedStage]:
    """Plans every stage, or those that `until` needs.

    Raises:
        SpecError: `until` names no stage, or raw input is missing, with every fault.
    """
    wanted = _needed(job, until)
    faults: list[str] = []
    planned: dict[str, PlannedStage] = {}
    for stage in job.stages:
        if stage.name not in wanted or not all(name in planned for name in stage.inputs.values()):
            continue
        try:
            planned[stage.name] = _plan_stage(stage, planned, store)
        except ArtifactError as error:
            faults.append(f"stages.{stage.name}: {error}")
    if faults:
        raise SpecError(faults)
    return list(planned.values())


def _needed(job: Job, until: str | None) -> set[str]:
    by_name = {stage.name: stage for stage in job.stages}
    if until is None:
        return set(by_name)
    if until not in by_name:
        raise SpecError(f"--until {until}: there is no such stage; there are {', '.join(by_name)}")
    needed, ahead = set[str](), [until]
    while ahead:
        name = ahead.pop()
        needed.add(name)
        ahead += [source for source in by_name[name].inputs.values() if source not in needed]
    return needed


def _plan_stage(stage: JobStage, planned: Mapping[str, PlannedStage], store: Store) -> PlannedStage:
    payload: dict[str, Any] = {
        "uses": stage.uses,
        "version": stage.declaration.version,
        "config": stage.config.identity(),
        "inputs": {role: planned[name].fingerprint for role, name in stage.inputs.items()},
    }
    if stage.declaration.raw is not None:
        listed = load_function(stage.declaration.raw)(stage.config)
        # None says that this config takes no raw input.
        if listed is not None:
            payload["raw"] = fingerprint(listed)
    identity = fingerprint(payload)
    if store.exists(manifest_path(stage.uses, identity)):
        return PlannedStage(stage=stage, payload=payload, fingerprint=identity, status="cached")
    reasons = _reasons(stage, payload, store)
    return PlannedStage(
        stage=stage,
        payload=payload,
        fingerprint=identity,
        status="new" if reasons is None else "changed",
        reasons=tuple(reasons or ()),
    )


def _reasons(stage: JobStage, payload: Mapping[str, Any], store: Store) -> list[str] | None:
    """What differs from the nearest earlier artifact of this stage; None when there is none."""
    differences = [
        _differences(stage, payload, manifest)
        for manifest in _earlier(store, stage.uses)
        if manifest.stage == stage.name
    ]
    return min(differences, key=len, default=None)


def _earlier(store: Store, uses: str) -> Iterator[Manifest]:
    for path in store.children(uses):
        if path == f"{uses}/pool" or not store.exists(f"{path}/manifest.json"):
            continue
        try:
            yield Manifest.model_validate_json(store.read(f"{path}/manifest.json"))
        except ValidationError:
            # Written by another version of the platform: nothing to compare with.
            continue


def _differences(stage: JobStage, payload: Mapping[str, Any], manifest: Manifest) -> list[str]:
    places = {name for name, field in type(stage.config).model_fields.items() if is_location(field)}
    before = {key: value for key, value in manifest.config.items() if key not in places}
    now = {key: value for key, value in stage.config.resolved().items() if key not in places}
    found = [
        f"config.{key} {old!r} -> {new!r}"
        for key, old, new in _changed(flattened(before), flattened(now))
    ]
    if manifest.version != payload["version"]:
        found.append(f"version {manifest.version} -> {payload['version']}")
    old_inputs = {role: reference.fingerprint for role, reference in manifest.inputs.items()}
    found += [f"input {role}" for role, _, _ in _changed(old_inputs, payload["inputs"])]
    if manifest.payload.get("raw") != payload.get("raw"):
        moved = [
            f"{key} {old!r} -> {new!r}"
            for key, old, new in _changed(manifest.config, stage.config.resolved())
            if key in places
        ]
        found.append(f"raw input{f' ({chr(44).join(moved)})' if moved else ''}")
    return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)
