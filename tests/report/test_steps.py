"""Steps at fault are told on the page."""

from transfusion.report.curves import read_metrics
from transfusion.report.steps import LISTED, told_steps
from transfusion.train.metrics import as_lines


def metrics(marks):
    rows = [
        {"step": step + 1, "kind": "train", "values": {"loss": 1.0, **marks.get(step, {})}}
        for step in range(60)
    ]
    return read_metrics(as_lines(rows))


def test_steps_are_told_as_the_files_about_them_are_named():
    spike = {"spike": 1.0}
    marks = {2: {"skipped": 1.0}, 6: spike, 7: {**spike, "rewound_steps": 4.0}}
    assert told_steps(metrics(marks)) == [
        "No update: step 2.",
        "Loss or gradient norm stood out: steps 6, 7.",
        "At step 7 the run went back to the checkpoint of step 4; steps 4 to 7 are passed over.",
    ]


def test_of_many_the_first_are_named_and_all_counted():
    (line,) = told_steps(metrics({step: {"spike": 1.0} for step in range(50)}))
    assert line.endswith(f", {LISTED - 1} and {50 - LISTED} more.")


def test_a_calm_run_tells_nothing():
    assert told_steps(metrics({})) == []
