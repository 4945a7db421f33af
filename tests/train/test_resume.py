"""Training goes on from its newest whole checkpoint as if nothing had happened."""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import model_config
from tests.train.outcomes import assert_same, assert_same_weights, records, rows, steps_saved
from tests.train.worlds import MadeUpSource, config, train
from transfusion.errors import ArtifactError
from transfusion.storage.local import LocalStore
from transfusion.storage.store import open_store
from transfusion.train.checkpoints.checkpoint import READ_WITHIN_S
from transfusion.train.checkpoints.record import CheckpointRecord, StoredFile
from transfusion.train.checkpoints.verifying import Verifier
from transfusion.train.faults import NotFiniteError
from transfusion.train.step import TransformerTrainee

pytestmark = pytest.mark.usefixtures("world", "unchecked_shapes")


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(folder)


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """Killed after step 5 of 6; checkpoints of steps 2 and 4 are there."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(InterruptedError):
        train(folder, stop_after=5)
    return folder


def data_files(record: Path, folder: Path) -> list[Path]:
    return [folder / file["path"] for file in json.loads(record.read_text())["files"]]


@pytest.mark.parametrize("steps_before_each_crash", [[1], [3, 4], [6]])
def test_crashes_leave_no_trace(uninterrupted, tmp_path, steps_before_each_crash):
    for step in steps_before_each_crash:
        with pytest.raises(InterruptedError):
            train(tmp_path, stop_after=step)
    assert_same(uninterrupted, (tmp_path, train(tmp_path)))


def test_a_crash_leaves_no_trace_in_a_unet_either(world, tmp_path):
    of_unet = config(model=model_config("unet"))
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        folder.mkdir()
    with pytest.raises(InterruptedError):
        train(rough, settings=of_unet, stop_after=3)
    outcomes = [train(folder, settings=of_unet) for folder in (calm, rough)]
    assert_same((calm, outcomes[0]), (rough, outcomes[1]))


@pytest.mark.slow
@settings(max_examples=2, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_crashes_after_any_steps_leave_no_trace(uninterrupted, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("crashed")
    for step in steps:
        # A step that is behind the checkpoint already is not taken again, and the run ends.
        with contextlib.suppress(InterruptedError):
            train(folder, stop_after=step)
    assert_same(uninterrupted, (folder, train(folder)))


def test_every_step_is_in_the_metrics_once(uninterrupted):
    folder, outcome = uninterrupted
    assert [row["step"] for row in rows(folder, outcome)] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(folder, outcome, "validation")] == [3, 6]
    losses = [row["loss"] for row in rows(folder, outcome)]
    assert losses[-1] < losses[0]


def test_a_whole_checkpoint_of_another_format_ends_the_run_instead_of_beginning_it_again(
    stopped, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    newest = records(folder)[-1]
    record = CheckpointRecord.model_validate_json(newest.read_text())
    other = record.model_copy(update={"format": "transfusion.checkpoint/1"})
    newest.write_text(other.sealed().model_dump_json(indent=1))
    before = steps_saved(folder)
    with pytest.raises(
        ArtifactError, match=r"is of format transfusion.checkpoint/1, and this version reads"
    ):
        train(folder)
    assert steps_saved(folder) == before


def flip_a_bit(record, folder):
    place = max(data_files(record, folder), key=lambda path: path.stat().st_size)
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)


def cut_short(record, folder):
    place = data_files(record, folder)[0]
    place.write_bytes(place.read_bytes()[:-1])


def lose_a_file(record, folder):
    data_files(record, folder)[-1].unlink()


def tear_the_record(record, folder):
    record.write_text(record.read_text()[:100])


def flip_a_bit_of_the_record(record, folder):
    """4 becomes 5: still a record, of a step that the weights never had."""
    text = record.read_text()
    assert text.count('"step": 4,') == 1
    record.write_text(text.replace('"step": 4,', '"step": 5,'))


def rename_a_record(record, folder):
    """The one before in its place."""
    record.write_text(records(folder)[0].read_text())


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_short,
        lose_a_file,
        tear_the_record,
        flip_a_bit_of_the_record,
        rename_a_record,
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    uninterrupted, stopped, tmp_path, damage, caplog
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert steps_saved(tmp_path) == [2, 4]
    damage(records(tmp_path)[-1], tmp_path)
    with caplog.at_level(logging.INFO, "transfusion"):
        outcome = train(tmp_path)
    assert "checkpoint of step 4 is not used" in caplog.text
    assert "resumed after step 2 of 6" in caplog.text
    assert_same(uninterrupted, (tmp_path, outcome))


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "flipped"])
def test_a_damaged_log_costs_its_rows_and_no_step(uninterrupted, stopped, tmp_path, lost, caplog):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    [log] = (tmp_path / "run/checkpoints/metrics").rglob("until-000002.jsonl")
    if lost:
        log.unlink()
    else:
        data = bytearray(log.read_bytes())
        data[20] ^= 1
        log.write_bytes(data)
    with caplog.at_level(logging.INFO, "transfusion"):
        outcome = train(tmp_path)
    assert "resumed after step 4 of 6" in caplog.text
    assert "it is left out" in caplog.text
    assert [row["step"] for row in rows(tmp_path, outcome)] == [3, 4, 5, 6]
    assert_same_weights((tmp_path, outcome), uninterrupted)


def test_a_thousand_logs_are_listed_once(tmp_path, monkeypatch):
    """A month's run has thousands; a listing for each would be thousands of pages of thousands."""
    store = open_store(str(tmp_path))
    logs = []
    for number in range(1000):
        path, data = f"metrics/until-{number:06d}.jsonl", b"{}\n"
        store.write(path, data)
        digest = hashlib.sha256(data).hexdigest()
        logs.append(StoredFile(path=path, sha256=digest, bytes=len(data)))
    listed = []
    list_folder = LocalStore.list
    monkeypatch.setattr(LocalStore, "list", lambda *of: listed.append(of) or list_folder(*of))
    assert Verifier(store).whole(logs) == logs
    assert len(listed) == 1


@pytest.mark.parametrize("policy", ["halt", "skip"])
def test_a_validation_that_is_no_number_goes_by_the_policy(tmp_path, policy, monkeypatch, caplog):
    found = TransformerTrainee.validate
    monkeypatch.setattr(
        TransformerTrainee, "validate", lambda self: {**found(self), "lm_loss": math.nan}
    )
    if policy == "halt":
        with pytest.raises(
            NotFiniteError, match="validation after step 3: lm_loss nan, ema_lm_loss"
        ):
            train(tmp_path)
        assert steps_saved(tmp_path)[-1] == 2
        return
    outcome = train(tmp_path, settings=config(on_nan="skip"))
    assert "validation after step 3: lm_loss nan" in caplog.text
    assert all("diffusion_loss" in row for row in rows(tmp_path, outcome, "validation"))
    assert not any("lm_loss" in row for row in rows(tmp_path, outcome, "validation"))


def test_files_without_a_record_are_never_loaded(uninterrupted, stopped, tmp_path, caplog):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    for record in records(tmp_path):
        record.unlink()
    with caplog.at_level(logging.INFO, "transfusion"):
        outcome = train(tmp_path)
    assert "resumed" not in caplog.text
    assert_same(uninterrupted, (tmp_path, outcome))


def test_only_the_newest_checkpoints_are_kept_and_those_whole(uninterrupted):
    folder, _ = uninterrupted
    assert steps_saved(folder) == [4, 6]
    kept = {path for record in records(folder) for path in data_files(record, folder)}
    there = {path for path in (folder / "run/checkpoints/data").rglob("*") if path.is_file()}
    assert there == kept


def test_what_killed_saves_left_behind_goes_with_the_next_save(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    orphan = tmp_path / "run/checkpoints/data/killed-attempt/step-000005/__0_0.distcp"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half of a checkpoint")
    with pytest.raises(InterruptedError):
        train(tmp_path, stop_after=5)
    assert orphan.exists(), "nothing is deleted before a newer checkpoint is whole"
    train(tmp_path)
    assert not orphan.exists()
    kept = {path for record in records(tmp_path) for path in data_files(record, tmp_path)}
    there = {path for path in (tmp_path / "run/checkpoints/data").rglob("*") if path.is_file()}
    assert there == kept


def test_a_checkpoint_of_another_run_is_refused_by_name_and_the_one_before_is_taken(
    uninterrupted, stopped, tmp_path, caplog
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    newest = records(tmp_path)[-1]
    foreign = newest.read_text().replace("f" * 64, "e" * 64)
    newest.write_text(foreign)
    with caplog.at_level(logging.INFO, "transfusion"):
        outcome = train(tmp_path)
    assert "step-000004.json: is of run eeeeeeeeeeeeeeee, not ffffffffffffffff" in caplog.text
    assert "resumed after step 2 of 6" in caplog.text
    assert (tmp_path / "run/checkpoints/refused/000004.json").read_text() == foreign
    assert_same(uninterrupted, (tmp_path, outcome))


def test_a_checkpoint_that_somebody_reads_is_not_deleted(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    note = tmp_path / "run/checkpoints/reading/other.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"step": 2, "at": time.time() - 60}))
    train(tmp_path)
    assert steps_saved(tmp_path) == [2, 4, 6]
    # A note of a process that died does not keep it for ever.
    note.write_text(json.dumps({"step": 2, "at": time.time() - 2 * READ_WITHIN_S}))
    records(tmp_path)[-1].unlink()
    train(tmp_path)
    assert steps_saved(tmp_path) == [4, 6]
    assert not list(note.parent.glob("[!o]*"))


def test_a_loss_that_is_no_number_stops_the_run_before_the_update_and_names_the_data(
    uninterrupted, tmp_path
):
    with pytest.raises(NotFiniteError, match=r"step 4: loss nan.*lane 1: document-4-1-0"):
        train(tmp_path, source=MadeUpSource(spoilt=[(4, 1)]))
    assert steps_saved(tmp_path)[-1] == 4
    # The state before it was whole: mended data and the same command finish the run.
    assert_same(uninterrupted, (tmp_path, train(tmp_path)))


def test_what_moves_the_last_bit_moves_the_identity():
    assert config(steps=7).identity() != config().identity()
    assert config(cpu_threads_per_worker=2).identity() != config().identity()


def test_a_checkpoint_that_is_asked_for_is_written_and_the_run_goes_on(uninterrupted, tmp_path):
    rare = config(checkpoint_every_steps=50, keep_checkpoints=10)
    asked = iter([False, False, True, False, False, False])
    made = train(tmp_path, settings=rare, save=lambda: next(asked))
    assert steps_saved(tmp_path) == [3, 6]
    assert rows(tmp_path, made) == rows(*uninterrupted)
    assert_same_weights((tmp_path, made), uninterrupted)
