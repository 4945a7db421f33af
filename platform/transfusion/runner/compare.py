"""`transfusion compare`: from what a user names to runs of the report's comparison."""

from collections.abc import Sequence
from pathlib import Path

from transfusion.artifacts.artifact import Artifact, find_artifact
from transfusion.errors import ArtifactError, SpecError
from transfusion.report.compare import (
    MAX_RUNS,
    Run,
    RunStage,
    compare,
    comparison_page,
    comparison_text,
)
from transfusion.report.curves import curves_of
from transfusion.runner.show import open_address, unfinished
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store


def compare_runs(targets: Sequence[str], *, out: Path | None) -> str:
    """What differs between runs, as text; their curves too, as a page, where `out` names one.

    Args:
        targets: Job files, with overrides behind a space (`"jobs/x.yaml stages.train.config.lr=1e-4"`), or
            folders of artifacts.

    Raises:
        SpecError: There are too few or too many.
        ArtifactError: A run has made nothing yet, not even a checkpoint.
    """
    if not 2 <= len(targets) <= MAX_RUNS:
        raise SpecError(f"compare: give 2 to {MAX_RUNS} runs, got {len(targets)}")
    runs = [_run(target) for target in targets]
    told = comparison_text(compare(runs))
    if out is None:
        return told
    try:
        out.write_text(comparison_page(runs), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    return f"{told}\n\ncurves   {out}"


def _run(target: str) -> Run:
    """All that a job has made or begun, or what the one artifact that is named was made from."""
    file, *overrides = target.split()
    if Path(file).suffix not in {".yaml", ".yml"}:
        return Run.of(target, [open_address(target)])
    job = read_job(Path(file), overrides)
    store = open_store(job.file.store)
    made, begun, missing = list[Artifact](), dict[str, RunStage](), dict[str, RunStage]()
    for planned in plan_job(job, store):
        stage = planned.stage
        artifact = find_artifact(store, uses=stage.uses, fingerprint=planned.fingerprint)
        if artifact is not None:
            made.append(artifact)
            continue
        left = unfinished(planned, store)
        (missing if left is None else begun)[stage.name] = RunStage(
            uses=stage.uses,
            version=stage.declaration.version,
            raw=planned.payload.get("raw"),
            config=stage.config.resolved(),
            curves=curves_of(left.rows() if left else ()),
        )
    if not made and not begun:
        raise ArtifactError(
            f"{target}: it has made nothing yet; make it with: transfusion run {target}"
        )
    told = f"{target}  (not made yet: {', '.join(missing)})" if missing else target
    return Run.of(told, made, {**begun, **missing})
