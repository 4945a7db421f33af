"""Sweeps: every arm and seed is a job, faults are told at once, a difference is shown only where seeds agree."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from transfusion.artifacts.canonical import canonical_json
from transfusion.artifacts.manifest import Content, Manifest, manifest_path
from transfusion.cli import app
from transfusion.errors import ArtifactError, SpecError
from transfusion.report.sweep import as_markdown, compare_arms
from transfusion.resources import Resources
from transfusion.runner import sweep as sweeps
from transfusion.spec.job import Job
from transfusion.spec.plan import plan_job
from transfusion.spec.sweep import read_sweep
from transfusion.storage.store import open_store

LOG = logging.getLogger("tests")
JOB = {
    "stages": {
        "images": {"uses": "data_pipelines.sources.shapes", "config": {"num_images": 4, "seed": 0}}
    }
}


def write(folder: Path, **changed: Any) -> Path:
    """A sweep over the number of images; a listing has no scores, so tests give it one."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump({"store": str(folder / "store"), **JOB}))
    values = {
        "title": "More images",
        "job": "base.yaml",
        "seed_key": "stages.images.config.seed",
        "seeds": [0, 1],
        "arms": {"few": {}, "many": {"overrides": ["stages.images.config.num_images=8"]}},
        "measures": {"images.score": "higher"},
        **changed,
    }
    (folder / "more.sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "more.sweep.yaml"


def fake_run(job: Job, **_: Any) -> list[Any]:
    """Commits a score that is the number of images, and a hundredth of the seed."""
    store = open_store(job.file.store)
    [planned] = plan_job(job, store)
    config = planned.stage.config.resolved()
    if config["num_images"] == 13:
        raise ArtifactError("thirteen is refused")
    content = Content(
        kind="listing",
        files=[],
        metrics={"score": config["num_images"] + config["seed"] / 100},
    )
    manifest = Manifest(
        stage="images", uses=planned.stage.uses, version=1, fingerprint=planned.fingerprint,
        payload=planned.payload, config=config, inputs={}, content=content, digest=content.digest(),
        timings={}, provenance={},
    )  # fmt: skip
    path = manifest_path(planned.stage.uses, planned.fingerprint)
    store.create(path, canonical_json(manifest.model_dump(mode="json")).encode())
    return []


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "run_job", fake_run)


def test_all_arms_of_a_seed_run_before_the_next_seed(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path / "a"))
    assert [(run.arm, run.seed) for run in sweep.runs] == [
        ("few", 0), ("many", 0), ("few", 1), ("many", 1)
    ]  # fmt: skip
    configs = [run.job.stages[0].config.resolved() for run in sweep.runs]
    assert [(c["num_images"], c["seed"]) for c in configs] == [(4, 0), (8, 0), (4, 1), (8, 1)]


def test_only_what_is_missing_runs_and_a_failure_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"few": {}, "bad": {"overrides": ["stages.images.config.num_images=13"]},
            "many": {"overrides": ["stages.images.config.num_images=8"]}}  # fmt: skip
    sweep = read_sweep(write(tmp_path / "a", arms=arms))
    result = sweeps.run_sweep(sweep, resources=Resources(), log=LOG)
    assert result.scores["images.score"] == {
        "few": {0: 4.0, 1: 4.01}, "bad": {}, "many": {0: 8.0, 1: 8.01}
    }  # fmt: skip
    assert set(result.failures) == {"bad, seed 0", "bad, seed 1"}
    again = []
    monkeypatch.setattr(sweeps, "run_job", lambda job, **_: again.append(job))
    sweeps.run_sweep(sweep, resources=Resources(), log=LOG)
    assert len(again) == 2


def test_faults_of_all_arms_are_told_at_once(tmp_path: Path) -> None:
    arms = {"few": {"overrides": ["stages.images.config.num_images=-1"]},
            "many": {"overrides": ["stages.images.config.nothing=8"]}}  # fmt: skip
    with pytest.raises(SpecError) as told:
        read_sweep(write(tmp_path / "a", arms=arms, measures={"nowhere.score": "lower"}))
    text = str(told.value)
    assert "arms.few" in text
    assert "num_images" in text
    assert "arms.many" in text
    with pytest.raises(SpecError, match="has no stage 'nowhere'; it has images"):
        read_sweep(write(tmp_path / "a", measures={"nowhere.score": "lower"}))


def test_a_measure_that_is_no_metric_is_named_after_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(sweeps, "run_job", lambda job, **_: made.append(fake_run(job)))
    sweep = read_sweep(write(tmp_path / "a", measures={"images.scare": "higher"}))
    with pytest.raises(SpecError, match="has no such metric; it has score"):
        sweeps.run_sweep(sweep, resources=Resources(), log=LOG)
    assert len(made) == 1


def test_a_difference_is_shown_where_seeds_agree_and_the_gap_is_twice_the_range() -> None:
    base = {0: 1.0, 1: 1.1, 2: 1.05}
    scores = {
        "base": base,
        "far": {0: 1.5, 1: 1.55, 2: 1.5},  # gap of .467, range of .1
        "near": {0: 1.15, 1: 1.25, 2: 1.2},  # all higher, gap of .15, twice the range is .2
        "mixed": {0: 0.2, 1: 2.9, 2: 2.0},
        "one": {0: 9.0},
        "none": {},
    }
    cells = compare_arms(scores, "base", higher_is_better=True)
    assert {arm: cell.verdict for arm, cell in cells.items()} == {
        "base": None, "far": "better", "near": "not shown", "mixed": "not shown", "one": "not shown",
    }  # fmt: skip
    assert cells["far"].difference == pytest.approx(0.4667, abs=1e-4)
    lower = compare_arms(scores, "base", higher_is_better=False)
    assert lower["far"].verdict == "worse"


def test_the_command_prints_the_table_and_puts_it_between_its_marks(tmp_path: Path) -> None:
    file = write(tmp_path / "a", notes="Read with care.")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- sweep more -->\nold\n<!-- end of sweep -->\nafter\n")
    missing = CliRunner().invoke(app, ["sweep", str(file), "--show", "--into", str(readme)])
    assert "4 runs are missing" in str(missing.exception)
    done = CliRunner().invoke(app, ["sweep", str(file), "--into", str(readme)])
    assert done.exit_code == 0, done.output
    assert "(4 of 4 runs, seeds 0, 1)" in done.output
    assert "8.005 [8, 8.01] better" in done.output
    text = readme.read_text()
    assert text.startswith(
        "before\n<!-- sweep more -->\n**More images**\n\n| arm | score |\n|---|---|"
    )
    assert "| many | 8.005 [8, 8.01] better |" in text
    assert text.endswith("Read with care.\n<!-- end of sweep -->\nafter\n")
    assert "old" not in text
    readme.write_text("no marks")
    with pytest.raises(SpecError, match="must hold the lines"):
        sweeps.write_into(readme, sweeps.collect(read_sweep(file)))


def test_a_plan_of_a_sweep_names_each_stage_once_and_runs_nothing(tmp_path: Path) -> None:
    arms = {
        "few": {},
        "many": {"overrides": ["stages.images.config.num_images=8"]},
        "few again": {},
    }
    file = write(tmp_path / "a", arms=arms, seeds=[0])
    command = ["sweep", str(file), "--plan"]
    planned = CliRunner().invoke(app, command)
    assert planned.exit_code == 0, planned.output
    lines = [" ".join(line.split()) for line in planned.output.splitlines()]
    shared = "all is there, or made by a run before"
    assert lines == ["More images (3 runs)", "few seed 0 images", "many seed 0 images",
                     f"few again seed 0 {shared}"]  # fmt: skip
    sweep = read_sweep(file)
    assert sweeps.collect(sweep).scores["images.score"] == {arm: {} for arm in arms}
    sweeps.run_sweep(sweep, resources=Resources(), log=LOG)
    assert CliRunner().invoke(app, command).output.count(shared) == 3
    refused = CliRunner().invoke(app, [*command, "--show"])
    assert refused.exit_code != 0
    assert "--plan" in f"{refused.output}{refused.exception}"


def test_markdown_has_a_row_an_arm() -> None:
    told = as_markdown([["arm", "x"], ["a", "1"]])
    assert told == "| arm | x |\n|---|---|\n| a | 1 |"


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parents[2] / "jobs").glob("**/*.sweep.yaml")),
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_every_shipped_sweep_is_without_fault(file: Path) -> None:
    sweep = read_sweep(file)
    # What is run here has three seeds; the papers' own settings had one.
    assert len(sweep.file.seeds) == (1 if file.parent.name == "paper" else 3)
    assert f"transfusion sweep jobs/{file.parent.name}/{file.name}" in file.read_text()


SHIPPED = sorted(Path(__file__).parents[2].glob("jobs/**/*.sweep.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_shipped_sweep_measures_what_its_jobs_evaluate(file: Path) -> None:
    sweep = read_sweep(file)
    paired = any(name.startswith("evaluation.paired.") for name in sweep.file.measures)
    for run in sweep.runs:
        evaluation = next((s for s in run.job.stages if s.name == "evaluation"), None)
        assert not paired or (evaluation and evaluation.config.num_paired > 0), (run.arm, run.seed)
