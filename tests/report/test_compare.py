"""Runs compared: what differs is named, what is equal is not, and losses are read at a step that all have."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.report.fake_run import FakeRun, make_run
from tests.report.page import Tree
from transfusion.artifacts.artifact import Artifact
from transfusion.cli import app
from transfusion.report.compare import Run, compare, comparison_charts, comparison_text
from transfusion.storage.store import open_store


def train(run: FakeRun, folder: Path, *, lr: float, steps: int, every: int) -> Artifact:
    """Another training on the same mixture; validated losses are the step over a hundred."""
    folder.mkdir(parents=True)
    rows = [
        {"step": step, "kind": "validation", "values": {"lm_loss": step / 100}, "timing": {}}
        for step in range(every, steps + 1, every)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = run.folder("transfusion.train", folder)
    config = {"steps": steps, "lr": lr, "model": {"dim": 64}}
    return run.commit(
        "train", "transfusion.train", "run", inputs=("mixture",), files=files, config=config,
        metrics={"bits": lr * 1000},
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    folder = tmp_path_factory.mktemp("compare")
    run = make_run(open_store(str(folder / "store")), folder / "scratch", steps=100)
    return [
        train(run, folder / "a", lr=1e-3, steps=300, every=100),
        train(run, folder / "b", lr=5e-4, steps=200, every=50),
    ]


def test_only_settings_that_differ_are_named(runs: list[Artifact]) -> None:
    found = compare([Run.of("one", [runs[0]]), Run.of("two", [runs[1]])])
    assert {row.name: row.values for row in found.config} == {
        "train.steps": (300, 200),
        "train.lr": (1e-3, 5e-4),
    }
    same = compare([Run.of("one", [runs[0]]), Run.of("again", [runs[0]])])
    assert same.config == []
    assert "nothing is set differently" in comparison_text(same)


def test_losses_are_read_at_the_last_step_that_all_were_validated_at(runs: list[Artifact]) -> None:
    found = compare([Run.of("one", [runs[0]]), Run.of("two", [runs[1]])])
    of_training = [row for row in found.learned if row.name.startswith("train.")]
    assert [(row.name, row.values) for row in of_training] == [("train.lm_loss at 200", (2.0, 2.0))]


def test_a_run_without_a_stage_has_a_dash_there(runs: list[Artifact]) -> None:
    mixture = runs[1].input("mixture")
    found = compare([Run.of("whole", [runs[0]]), Run.of("mixture only", [mixture])])
    assert [(row.name, row.values) for row in found.config] == [
        ("train: uses", ("transfusion.train", None))
    ]
    assert found.learned == [row for row in found.learned if row.name.startswith("autoencoder.")]
    assert "transfusion.train  -" in comparison_text(found)


def test_each_run_has_its_line_in_each_chart(runs: list[Artifact]) -> None:
    charts = comparison_charts([Run.of("one", [runs[0]]), Run.of("two", [runs[1]])])
    chart = next(chart for chart in charts if chart.title.startswith("train: "))
    assert chart.legend == [("c0", "A"), ("c1", "B")]
    assert 'class="line c0"' in chart.svg
    assert 'class="line c1"' in chart.svg


def test_the_command_prints_and_writes_a_page(runs: list[Artifact], tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    folders = [run.store.url(run.path) for run in runs]
    done = CliRunner().invoke(app, ["compare", *folders, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "train.lr" in done.output
    assert "-0.5" in done.output  # bits: 0.5 against 1
    tree = Tree(page.read_text())
    assert folders[0] in tree.text
    assert "Set differently" in tree.text


def test_one_run_is_not_compared() -> None:
    done = CliRunner().invoke(app, ["compare", "only"])
    assert done.exit_code != 0
    assert "give 2 to 6 runs, got 1" in str(done.exception)
