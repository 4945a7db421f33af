"""The job file: what it may hold, and every fault of it at once."""

import graphlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from transfusion.config import Config, read_yaml, suggestion, validate
from transfusion.errors import SpecError
from transfusion.serve.config import EndpointConfig
from transfusion.spec.stages import find_stage, load_function
from transfusion.stage import ANY_ROLE, Stage, Upstream


class StageSpec(Config):
    """One stage as the job file writes it."""

    uses: str
    """The module that declares the stage, such as `data_pipelines.encode_images`."""
    inputs: dict[str, str] = {}
    """Role to the name of the stage whose artifact fills it."""
    config: dict[str, Any] = {}


class JobFile(Config):
    """A job file."""

    store: str = "./artifacts"
    """A local folder or `s3://bucket/prefix`."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Stages that draw take it: `seed: ${seed}`."""
    stages: dict[str, StageSpec] = Field(min_length=1)
    endpoint: EndpointConfig | None = None
    """How `transfusion serve` offers the model."""


@dataclass(frozen=True, kw_only=True)
class JobStage:
    """A stage whose declaration was found and whose config was checked."""

    name: str
    uses: str
    inputs: dict[str, str]
    declaration: Stage
    config: Config


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job without faults; stages stand in an order in which they can run."""

    name: str
    file: JobFile
    stages: tuple[JobStage, ...]
    resolved: dict[str, Any]
    """The file with overrides and interpolations applied, for records and for submission."""


def read_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Reads and checks a job file.

    Raises:
        SpecError: With every fault of the file, each naming its place, the value, the rule and a remedy.
    """
    resolved = read_yaml(path, overrides)
    return check_job(resolved, name=path.stem, where=str(path))


def check_job(resolved: dict[str, Any], *, name: str, where: str) -> Job:
    """Checks a job's plain values. Raises SpecError with all faults; see `read_job`."""
    faults = _shape_faults(resolved, where)
    stages: dict[str, JobStage] = {}
    sound: dict[str, JobStage] = {}
    written = resolved.get("stages")
    known = [str(stage_name) for stage_name in written] if isinstance(written, dict) else []
    for stage_name, values in (written if isinstance(written, dict) else {}).items():
        spec, spec_faults = validate(StageSpec, values, where=f"{where}: stages.{stage_name}")
        if spec is None:
            others = [other for other in known if other != str(stage_name)]
            faults += _misspelt(str(stage_name), values, others, where) or spec_faults
            continue
        stage, stage_faults = _check_stage(str(stage_name), spec, where)
        faults += stage_faults
        if stage is not None:
            stages[stage.name] = stage
            if not stage_faults:
                sound[stage.name] = stage
    for stage in stages.values():
        input_faults = _check_inputs(stage, stages, known, where)
        faults += input_faults
        if input_faults:
            sound.pop(stage.name, None)
    faults += _check_fits(sound, where)
    if faults:
        raise SpecError(faults)
    job_file, rest = validate(JobFile, resolved, where=where)
    assert job_file is not None, rest
    ordered = _order(stages, where)
    return Job(name=name, file=job_file, stages=ordered, resolved=resolved)


def _shape_faults(resolved: dict[str, Any], where: str) -> list[str]:
    """Faults outside the stages; those inside are told with the help of their declarations."""
    _, faults = validate(JobFile, resolved, where=f"{where}: ")
    inside = f"{where}: .stages."
    return [
        fault.replace(f"{where}: .", f"{where}: ", 1)
        for fault in faults
        if not fault.startswith(inside)
    ]


def _misspelt(name: str, values: Any, others: list[str], where: str) -> list[str]:
    """The fault of a stage that an override made by another spelling, such as `stages.trian.config.steps=10`."""
    meant = suggestion(name, others)
    if not isinstance(values, dict) or "uses" in values or "did you mean" not in meant:
        return []
    return [f"{where}: stages.{name}: there is no such stage, or it lacks `uses`{meant}"]


def _check_stage(name: str, spec: StageSpec, where: str) -> tuple[JobStage | None, list[str]]:
    place = f"{where}: stages.{name}"
    try:
        declaration = find_stage(spec.uses)
    except SpecError as error:
        return None, [f"{place}.uses: {fault}" for fault in error.faults]
    config, faults = validate(declaration.config, spec.config, where=f"{place}.config")
    if config is None:
        return None, faults
    if declaration.check is not None:
        check = load_function(declaration.check)
        faults = [f"{place}.config{fault}" for fault in check(config, dict(spec.inputs))]
    stage = JobStage(
        name=name, uses=spec.uses, inputs=dict(spec.inputs), declaration=declaration, config=config
    )
    return stage, faults


def _check_inputs(
    stage: JobStage, stages: dict[str, JobStage], known: list[str], where: str
) -> list[str]:
    place = f"{where}: stages.{stage.name}.inputs"
    roles = stage.declaration.inputs
    faults = [
        f"{place}.{role}: {stage.uses} needs this input ({' or '.join(wanted.kinds)})"
        for role, wanted in roles.items()
        if wanted.required and role != ANY_ROLE and role not in stage.inputs
    ]
    if ANY_ROLE in roles and roles[ANY_ROLE].required and not stage.inputs:
        faults.append(
            f"{place}: {stage.uses} needs at least one ({' or '.join(roles[ANY_ROLE].kinds)})"
        )
    for role, source in stage.inputs.items():
        wanted = roles.get(role, roles.get(ANY_ROLE))
        if wanted is None:
            faults.append(
                f"{place}.{role}: {stage.uses} has no such input{suggestion(role, list(roles))}"
            )
        elif source not in known:
            faults.append(
                f"{place}.{role}: there is no stage {source!r}{suggestion(source, known)}"
            )
        elif source in stages and stages[source].declaration.output not in wanted.kinds:
            makes = stages[source].declaration.output
            faults.append(
                f"{place}.{role}: must be {' or '.join(wanted.kinds)}, but {source!r} makes {makes}"
            )
    return faults


def _check_fits(stages: dict[str, JobStage], where: str) -> list[str]:
    """Faults between a stage and those before it.

    Args:
        stages: Those without faults of their own; one that waits for another is passed over.
    """
    seen: dict[str, Upstream | None] = {}

    def upstream(name: str) -> Upstream | None:
        stage = stages.get(name)
        if stage is None or name in seen:
            return seen.get(name)
        seen[name] = None  # What waits for itself is told of elsewhere.
        inputs = {role: upstream(source) for role, source in stage.inputs.items()}
        whole = {role: found for role, found in inputs.items() if found is not None}
        if len(whole) == len(inputs):
            seen[name] = Upstream(uses=stage.uses, config=stage.config, inputs=whole)
        return seen[name]

    faults = []
    for stage in stages.values():
        found = upstream(stage.name)
        if found is not None and stage.declaration.fits is not None:
            check = load_function(stage.declaration.fits)
            place = f"{where}: stages.{stage.name}.config"
            faults += [f"{place}{fault}" for fault in check(found.config, found.inputs)]
    return faults


def _order(stages: dict[str, JobStage], where: str) -> tuple[JobStage, ...]:
    """The order of the file, save that a stage comes after what it needs."""
    needs = {name: set(stage.inputs.values()) for name, stage in stages.items()}
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise SpecError(
            f"{where}: stages: each waits for the other: {circle}; remove one input"
        ) from error
    ordered: list[str] = []
    while len(ordered) < len(stages):
        ordered.append(next(n for n in stages if n not in ordered and needs[n] <= set(ordered)))
    return tuple(stages[name] for name in ordered)
