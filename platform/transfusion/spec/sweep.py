"""A sweep: one job, arms that override it, seeds, and the scores that are compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from transfusion.config import Config, read_yaml, validate
from transfusion.errors import SpecError
from transfusion.spec.job import Job, read_job

SUFFIX = ".sweep.yaml"

Better = Literal["lower", "higher"]


class Arm(Config):
    """One side of the comparison."""

    overrides: list[str] = []
    """`path.to.key=value` on the job."""

    job: str | None = None
    """Another job than the sweep's, beside the sweep's file, for an arm that has other stages."""

    seeds: list[int] | None = None
    """Other seeds than the sweep's."""


class SweepFile(Config):
    """A sweep file."""

    title: str
    """What is asked, in a few words."""

    job: str
    """The job file, beside the sweep's file."""

    seed_key: str = "stages.train.config.seed"
    """What a seed is set as: data and plan stay the same in all runs when it is that of training alone."""

    seeds: list[int] = Field(min_length=1)

    overrides: list[str] = []
    """On every run."""

    arms: dict[str, Arm] = Field(min_length=1)
    """The first is what the others are compared with."""

    measures: dict[str, Better] = Field(min_length=1)
    """`STAGE.METRIC` and which way is better."""

    notes: str = ""
    """What a reader of the table must know: controls, what differs from the source."""

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"each seed must stand there once, got {seeds}")
        return seeds


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep."""

    arm: str
    seed: int
    job: Job


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep without faults."""

    name: str
    file: SweepFile
    runs: tuple[SweepRun, ...]
    """All arms of a seed before the next seed, so that a part of a sweep can be compared too."""

    def stage_of(self, measure: str) -> str:
        """The stage that a measure is of."""
        return measure.partition(".")[0]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that hold measures."""
        return tuple(dict.fromkeys(self.stage_of(measure) for measure in self.file.measures))


def read_sweep(path: Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """Reads and checks a sweep and the job of every run.

    Raises:
        SpecError: With every fault.
    """
    file, faults = validate(SweepFile, read_yaml(path), where=str(path))
    if file is None:
        raise SpecError(faults)
    runs: list[SweepRun] = []
    told: dict[str, None] = {}
    seeds = list(
        dict.fromkeys([*file.seeds, *(s for arm in file.arms.values() for s in arm.seeds or ())])
    )
    for seed in seeds:
        for name, arm in file.arms.items():
            if seed not in (file.seeds if arm.seeds is None else arm.seeds):
                continue
            given = [*file.overrides, *arm.overrides, f"{file.seed_key}={seed}", *overrides]
            try:
                job = read_job(path.parent / (arm.job or file.job), given)
            except SpecError as error:
                told |= dict.fromkeys(f"{path}: arms.{name}: {fault}" for fault in error.faults)
                continue
            known = {stage.name for stage in job.stages}
            told |= dict.fromkeys(
                f"{path}: measures.{measure}: arms.{name} has no stage "
                f"{measure.partition('.')[0]!r}; it has {', '.join(sorted(known))}"
                for measure in file.measures
                if measure.partition(".")[0] not in known
            )
            runs.append(SweepRun(arm=name, seed=seed, job=job))
    if told:
        raise SpecError(list(told))
    return Sweep(name=path.name.removesuffix(SUFFIX), file=file, runs=tuple(runs))
