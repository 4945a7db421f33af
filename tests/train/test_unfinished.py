"""A run is looked at before it ends, and after it broke: its rows are those that the whole run would have had."""

import pytest

from tests.train.outcomes import rows
from tests.train.worlds import MadeUpSource, config, train
from transfusion.resources import TrainResources
from transfusion.storage.store import open_store
from transfusion.train.checkpoints.record import CheckpointRecord
from transfusion.train.checkpoints.unfinished import UNSAVED, keep_unsaved, read_unfinished
from transfusion.train.faults import NotFiniteError
from transfusion.train.metrics import parse_rows

pytestmark = pytest.mark.usefixtures("world", "unchecked_shapes")


def look(folder):
    return read_unfinished(open_store(str(folder)), "run")


def values(unfinished, kind="train"):
    return [
        {"step": row["step"], **row["values"]} for row in unfinished.rows() if row["kind"] == kind
    ]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    outcome = train(folder)
    return rows(folder, outcome), rows(folder, outcome, "validation")


@pytest.mark.parametrize(("crash", "checkpoint"), [(1, 0), (2, 0), (3, 2), (5, 4)])
def test_rows_go_as_far_as_the_attempt_did(tmp_path, whole, crash, checkpoint):
    trained, validated = whole
    with pytest.raises(InterruptedError):
        train(tmp_path, stop_after=crash)
    found = look(tmp_path)
    assert (found.checkpoint_step, found.last_step) == (checkpoint, crash)
    assert values(found) == trained[:crash]
    # Validation of a step comes after its row, so that of the last one was not reached.
    assert values(found, "validation") == [row for row in validated if row["step"] < crash]
    assert found.last_values()["train.loss"] == trained[crash - 1]["loss"]


def test_rows_of_an_attempt_that_was_overtaken_are_not_shown_twice(tmp_path, whole):
    trained, _ = whole
    for crash in (3, 5):
        with pytest.raises(InterruptedError):
            train(tmp_path, stop_after=crash)
    assert len(list((tmp_path / "run" / UNSAVED).iterdir())) == 2
    assert values(look(tmp_path)) == trained[:5]


def test_of_two_attempts_from_one_checkpoint_the_farther_is_shown(tmp_path, whole):
    trained, _ = whole
    rare = config(checkpoint_every_steps=6)
    for crash in (4, 2):
        with pytest.raises(InterruptedError):
            train(tmp_path, settings=rare, stop_after=crash)
    assert values(look(tmp_path)) == trained[:4]


def test_a_run_that_halts_keeps_the_steps_that_led_to_it(tmp_path, whole):
    trained, _ = whole
    with pytest.raises(NotFiniteError):
        train(
            tmp_path,
            settings=config(checkpoint_every_steps=6),
            source=MadeUpSource(spoilt=[(3, 1)]),
        )
    found = look(tmp_path)
    assert (found.checkpoint_step, found.last_step) == (0, 3)
    assert values(found) == trained[:3]


def test_a_record_that_cannot_be_read_is_passed_over(tmp_path, whole):
    trained, _ = whole
    with pytest.raises(InterruptedError):
        train(tmp_path, stop_after=5)
    (tmp_path / "run/checkpoints/step-000004.json").write_text("{")
    (unsaved,) = (tmp_path / "run" / UNSAVED).iterdir()
    unsaved.unlink()
    found = look(tmp_path)
    assert found.checkpoint_step == 2
    assert values(found) == trained[:2]


@pytest.mark.parametrize("background", [False, True])
def test_rows_of_a_save_that_failed_are_kept(tmp_path, whole, fill_disk, background):
    trained, _ = whole
    fill_disk("step-000004")
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, resources=TrainResources(checkpoint_async=background))
    found = look(tmp_path)
    assert (found.checkpoint_step, found.last_step >= 4) == (2, True)
    assert values(found) == trained[: found.last_step]


def test_rows_of_an_attempt_from_a_checkpoint_that_was_refused_leave_no_gap(tmp_path, whole):
    trained, _ = whole
    with pytest.raises(InterruptedError):
        train(tmp_path, stop_after=5)
    (tmp_path / "run/checkpoints/step-000004.json").unlink()
    assert values(look(tmp_path)) == trained[:5], "rows that may not be saved were kept as well"
    store = open_store(str(tmp_path))
    (unsaved,) = (tmp_path / "run" / UNSAVED).iterdir()
    later = [row for row in parse_rows(unsaved.read_bytes()) if row["step"] > 4]
    keep_unsaved(store, "run", attempt=unsaved.stem, rows=later)
    assert values(look(tmp_path)) == trained[:2]


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    with pytest.raises(InterruptedError):
        train(tmp_path, stop_after=3)
    place = tmp_path / "run/checkpoints"
    record = CheckpointRecord.model_validate_json((place / "step-000002.json").read_text())
    for step in (999_999, 1_000_000):
        later = record.model_copy(update={"step": step})
        (place / f"step-{step:06d}.json").write_text(later.model_dump_json())
    assert look(tmp_path).checkpoint_step == 1_000_000


def test_of_a_long_run_the_newest_files_are_enough(tmp_path, monkeypatch, whole):
    trained, _ = whole
    with pytest.raises(InterruptedError):
        train(tmp_path, settings=config(checkpoint_every_steps=1), stop_after=5)
    monkeypatch.setattr("transfusion.train.checkpoints.unfinished.NEWEST_FILES", 1)
    monkeypatch.setattr("transfusion.train.checkpoints.unfinished.PARALLEL_READS", 2)
    found = look(tmp_path)
    assert len(found.files) == found.checkpoint_step == 4
    assert values(found) == trained[:5]
    assert found.last_values()["train.loss"] == trained[4]["loss"]
    assert "train.lr" not in found.last_values()


def test_what_was_not_begun_is_not_shown(tmp_path):
    assert look(tmp_path) is None


def test_a_run_that_ends_leaves_no_rows_behind(tmp_path):
    train(tmp_path)
    assert not (tmp_path / "run" / UNSAVED).exists()
