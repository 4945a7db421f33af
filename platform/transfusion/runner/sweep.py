"""`transfusion sweep`: what it would make, every run that is not there yet, and the table of all."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from transfusion.artifacts.artifact import find_artifact
from transfusion.errors import ArtifactError, SpecError, TransfusionError
from transfusion.report.sweep import Cell, as_markdown, as_text, compare_arms, table
from transfusion.resources import Resources
from transfusion.runner.estimate import Estimate, estimate
from transfusion.runner.profile import Profile
from transfusion.runner.run import run_job
from transfusion.spec.plan import PlannedStage, plan_job
from transfusion.spec.sweep import Sweep, SweepRun
from transfusion.stage import duration
from transfusion.storage.store import open_store


@dataclass(kw_only=True)
class SweepResult:
    """What is known of a sweep."""

    sweep: Sweep
    scores: dict[str, dict[str, dict[int, float]]]
    """By measure, arm and seed; of runs that have come so far."""
    failures: dict[str, str] = field(default_factory=dict)
    """Runs that ended in an error, and it."""

    def cells(self) -> dict[str, dict[str, Cell]]:
        """By measure and arm; the stage is left out of a measure's name where all are of one stage."""
        reference = next(iter(self.sweep.file.arms))
        stage = f"{self.sweep.stages[0]}." if len(self.sweep.stages) == 1 else ""
        return {
            measure.removeprefix(stage): compare_arms(
                self.scores[measure], reference, higher_is_better=better == "higher"
            )
            for measure, better in self.sweep.file.measures.items()
        }


def run_sweep(sweep: Sweep, *, resources: Resources, log: logging.Logger) -> SweepResult:
    """Makes every run. One that fails is told at the end and holds up none of the others."""
    failures: dict[str, str] = {}
    todo = [run for run in sweep.runs if any(_missing(sweep, run))]
    began = time.monotonic()
    for number, run in enumerate(todo):
        left = ""
        if number:
            each = (time.monotonic() - began) / number
            left = f", about {duration(each * (len(todo) - number))} left"
        name = f"{run.arm}, seed {run.seed}"
        log.info(f"run {number + 1} of {len(todo)}: {name}{left}")
        try:
            for stage in sweep.stages:
                run_job(run.job, resources=resources, until=stage, log=log)
        except TransfusionError as error:
            failures[name] = str(error)
            log.error(f"{name}: {error}")
        if not number:
            # A measure that no run has is told now, not when all of them are made.
            collect(sweep)
    return collect(sweep, failures)


def collect(sweep: Sweep, failures: dict[str, str] | None = None) -> SweepResult:
    """The scores that are there. Starts nothing."""
    scores: dict[str, dict[str, dict[int, float]]] = {
        measure: {arm: {} for arm in sweep.file.arms} for measure in sweep.file.measures
    }
    for run in sweep.runs:
        found = _metrics(sweep, run)
        for measure in sweep.file.measures:
            stage = sweep.stage_of(measure)
            if stage not in found:
                continue
            name = measure.removeprefix(f"{stage}.")
            value = found[stage].get(name)
            if value is None:
                known = ", ".join(sorted(found[stage])) or "none"
                raise SpecError(
                    f"{sweep.name}: measures.{measure}: {run.arm} has no such metric; it has {known}"
                )
            scores[measure][run.arm][run.seed] = value
    return SweepResult(sweep=sweep, scores=scores, failures=failures or {})


def _metrics(sweep: Sweep, run: SweepRun) -> dict[str, dict[str, float]]:
    store = open_store(run.job.file.store)
    found = {}
    for planned in plan_job(run.job, store):
        if planned.stage.name not in sweep.stages:
            continue
        artifact = find_artifact(store, uses=planned.stage.uses, fingerprint=planned.fingerprint)
        if artifact is not None:
            found[planned.stage.name] = dict(artifact.manifest.content.metrics)
    return found


def _missing(sweep: Sweep, run: SweepRun) -> Iterator[PlannedStage]:
    store = open_store(run.job.file.store)
    for planned in plan_job(run.job, store):
        if planned.stage.name in sweep.stages and planned.status != "cached":
            yield planned


def plan_sweep(sweep: Sweep, profile: Profile) -> tuple[str, list[Estimate]]:
    """A line a run, with the stages that it adds to what is there and to runs before it; and their estimates."""
    known: set[tuple[str, str]] = set()
    lines, estimates = [f"{sweep.file.title}  ({len(sweep.runs)} runs)"], list[Estimate]()
    width = max(len(run.arm) for run in sweep.runs)
    for run in sweep.runs:
        store = open_store(run.job.file.store)
        planned = {
            stage.stage.name: stage
            for until in sweep.stages
            for stage in plan_job(run.job, store, until=until)
        }
        new = [
            stage
            for stage in planned.values()
            if stage.status != "cached" and (stage.stage.uses, stage.fingerprint) not in known
        ]
        known |= {(stage.stage.uses, stage.fingerprint) for stage in new}
        names = [stage.stage.name for stage in new]
        estimates += [
            replace(one, stage=f"{run.arm}, seed {run.seed}: {one.stage}")
            for one in estimate(list(planned.values()), store, profile)
            if one.stage in names
        ]
        told = ", ".join(names) or "all is there, or made by a run before"
        lines.append(f"  {run.arm:{width}}  seed {run.seed}  {told}")
    return "\n".join(lines), estimates


def sweep_text(result: SweepResult) -> str:
    """For a terminal: the question, the table, what is missing and how to read it."""
    sweep = result.sweep
    there = sum(len(_metrics(sweep, run)) == len(sweep.stages) for run in sweep.runs)
    lines = [
        f"{sweep.file.title}  ({there} of {len(sweep.runs)} runs, seeds "
        f"{', '.join(map(str, sweep.file.seeds))})",
        "",
        as_text(table(result.cells(), list(sweep.file.arms))),
        "",
        "mean [lowest, highest] over seeds; better or worse than the first arm where all seeds agree and the gap",
        "is twice the larger range over seeds, else not shown",
    ]
    lines += [f"failed: {name}: {error}" for name, error in result.failures.items()]
    return "\n".join(lines)


def write_into(place: Path, result: SweepResult) -> None:
    """Puts the table between the marks of this sweep in a Markdown file.

    Raises:
        SpecError: The file has no such marks.
    """
    sweep = result.sweep
    begin, end = f"<!-- sweep {sweep.name} -->", "<!-- end of sweep -->"
    text = place.read_text(encoding="utf-8") if place.is_file() else ""
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise SpecError(f"{place}: must hold the lines {begin} and {end}: the table goes between")
    missing = [
        f"{run.arm}, seed {run.seed}"
        for run in sweep.runs
        if len(_metrics(sweep, run)) < len(sweep.stages)
    ]
    if missing:
        raise ArtifactError(f"{sweep.name}: {len(missing)} runs are missing: {'; '.join(missing)}")
    told = as_markdown(table(result.cells(), list(sweep.file.arms)))
    notes = f"\n\n{sweep.file.notes.strip()}" if sweep.file.notes else ""
    body = f"{begin}\n**{sweep.file.title}**\n\n{told}{notes}\n{end}"
    place.write_text(before + body + after, encoding="utf-8")
