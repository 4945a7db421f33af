"""Commands that a run ends with, and that errors name, are those that work: with the overrides of the run."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.pipeline import make_model
from transfusion.cli import app
from transfusion.errors import ArtifactError
from transfusion.runner.run import StageResult
from transfusion.runner.show import results_text
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store

JOB = Path("jobs/smoke.yaml")


def test_a_run_ends_with_commands_for_the_model_that_it_made(tmp_path: Path) -> None:
    # A space, as a shell sees it: what is printed must be what can be pasted.
    overrides = [f"store={tmp_path / 'a store'}", "seed=3"]
    job = read_job(JOB, overrides)
    planned, *_ = plan_job(job, open_store(job.file.store))
    model = make_model(tmp_path / "a store")
    result = StageResult(planned=planned, artifact=model, ran=True, seconds=1.0)
    told = results_text([result], job, JOB, overrides)
    for line, command in (("serve it: ", "serve"), ("or draw:  ", "sample")):
        (printed,) = [text for text in told.splitlines() if text.startswith(line)]
        words = shlex.split(printed.removeprefix(line))
        assert words[:5] == ["transfusion", command, str(JOB), *overrides]
    assert f"({planned.stage.name})" not in told
    twice = results_text([result, result], job, JOB, overrides).splitlines()
    assert sum(line.endswith(f"  ({planned.stage.name})") for line in twice) == 2


def test_sample_takes_the_overrides_that_its_job_was_run_with(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        CliRunner().invoke(
            app,
            ["sample", str(JOB), f"store={tmp_path}", "--prompt", "a red circle"],
            catch_exceptions=False,
        )
    assert f"transfusion run {JOB} store={tmp_path}" in str(caught.value)


def test_help_keeps_what_stands_in_brackets() -> None:
    told = CliRunner().invoke(app, ["sample", "--help"]).output
    assert "[image]" in told
