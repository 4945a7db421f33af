"""`show` and `compare` tell of a run that has not ended, as far as it came."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.report.page import Tree
from transfusion.cli import app
from transfusion.errors import ArtifactError, SpecError
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store
from transfusion.train.checkpoints.unfinished import keep_unsaved

JOB = Path("jobs/quickstart.yaml")


def begin(store: Path, *, lr: str, losses: list[float]) -> list[str]:
    """Leaves what an attempt at the job's training that broke would have left; returns the overrides."""
    overrides = [f"store={store}", f"stages.train.config.lr={lr}"]
    (planned,) = [
        planned
        for planned in plan_job(read_job(JOB, overrides), open_store(str(store)))
        if planned.stage.name == "train"
    ]
    rows = [
        {"step": step, "kind": kind, "values": {"lm_loss": loss}, "timing": {}}
        for step, loss in enumerate(losses, start=1)
        for kind in ("train", "validation")
    ]
    keep_unsaved(open_store(str(store)), planned.path, attempt="a", rows=rows)
    return overrides


def test_show_tells_how_far_it_came_and_what_was_measured_last(tmp_path: Path) -> None:
    overrides = begin(tmp_path, lr="1e-3", losses=[3.0, 2.5, 2.25])
    done = CliRunner().invoke(app, ["show", str(JOB), *overrides])
    assert done.exit_code == 0, done.output
    assert "not finished: measured up to step 3, the last checkpoint is of step 0" in done.output
    told = json.loads(CliRunner().invoke(app, ["show", str(JOB), *overrides, "--json"]).output)
    assert told["stages"]["train"]["metrics"] == {"train.lm_loss": 2.25, "validation.lm_loss": 2.25}
    assert "unfinished" not in told["stages"]["autoencoder"]


def test_unfinished_runs_are_compared_by_settings_losses_and_curves(tmp_path: Path) -> None:
    targets = [
        " ".join([str(JOB), *begin(tmp_path, lr="1e-3", losses=[3.0, 2.5, 2.25])]),
        " ".join([str(JOB), *begin(tmp_path, lr="5e-4", losses=[3.0, 2.75])]),
    ]
    page = tmp_path / "compare.html"
    done = CliRunner().invoke(app, ["compare", *targets, "--out", str(page)])
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line.strip()}
    assert [float(rate) for rate in rows["train.lr"]] == [1e-3, 5e-4]
    assert rows["train.lm_loss"] == ["at", "2", "2.5", "2.75", "+0.25"]
    assert "train: Next tokens: loss per token, nats" in Tree(page.read_text()).text


def test_stages_that_are_not_there_yet_are_compared_by_their_settings(tmp_path: Path) -> None:
    run = " ".join([str(JOB), *begin(tmp_path, lr="1e-3", losses=[3.0])])
    told = CliRunner().invoke(app, ["compare", run, f"{run} stages.model.config.precision=bf16"])
    rows = {line.split()[0]: line.split()[1:] for line in told.output.splitlines() if line.strip()}
    assert rows["model.precision"] == ["fp32", "bf16"]
    assert "(not made yet: images, prose, " in told.output
    assert " train" not in told.output.split("not made yet")[1].split(")")[0]


def test_a_page_that_cannot_be_written_is_told_without_a_traceback(tmp_path: Path) -> None:
    targets = [" ".join([str(JOB), *begin(tmp_path, lr="1e-3", losses=[3.0])])] * 2
    place = tmp_path / "nowhere" / "x.html"
    with pytest.raises(SpecError, match=r"--out .*x\.html: cannot be written: No such file"):
        CliRunner().invoke(app, ["compare", *targets, "--out", str(place)], catch_exceptions=False)


def test_a_job_that_was_not_begun_has_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="it has made nothing yet"):
        CliRunner().invoke(
            app, ["compare", *[f"{JOB} store={tmp_path}"] * 2], catch_exceptions=False
        )
