"""Checkpoints that are written while training goes on are those that a pause would have written."""

import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load

from tests.train.outcomes import (
    WEIGHTS,
    assert_same,
    assert_same_weights,
    records,
    result_file,
    steps_saved,
)
from tests.train.worlds import MadeUpSource, config, make_trainee, train
from transfusion.resources import TrainResources
from transfusion.train.checkpoints.checkpoint import Checkpoints
from transfusion.train.parallel import local
from transfusion.train.state import TrainingState

pytestmark = pytest.mark.usefixtures("world")

BACKGROUND = TrainResources(checkpoint_async=True)


@pytest.fixture(scope="module")
def calm(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    return folder, train(folder)


def test_the_copy_is_of_its_step_however_late_it_is_written(calm, tmp_path, monkeypatch):
    save = Checkpoints.save

    def late(*arguments, **named):
        time.sleep(0.7)
        return save(*arguments, **named)

    monkeypatch.setattr(Checkpoints, "save", late)
    # Every step is over before its save begins: what is written must not be what is trained by then.
    every = config(checkpoint_every_steps=2)
    with pytest.raises(InterruptedError):
        train(tmp_path, settings=every, stop_after=5, resources=BACKGROUND)
    assert steps_saved(tmp_path) == [2, 4]
    monkeypatch.undo()
    assert_same(calm, (tmp_path, train(tmp_path)))


def test_background_and_pause_come_to_the_same(calm, tmp_path):
    outcome = train(tmp_path, resources=BACKGROUND)
    assert steps_saved(tmp_path) == [4, 6]
    assert_same(calm, (tmp_path, outcome))
    files = {
        file["path"]
        for record in records(tmp_path)
        for file in json.loads(record.read_text())["files"]
    }
    there = (tmp_path / "run/checkpoints/data").rglob("*")
    assert {path.relative_to(tmp_path).as_posix() for path in there if path.is_file()} == files


def test_a_save_that_fails_ends_the_run_at_a_later_step(tmp_path, fill_disk):
    fill_disk("step-000002")
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, resources=BACKGROUND)
    assert steps_saved(tmp_path) == []


PROGRAM = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from tests.train.worlds import train
from transfusion.resources import TrainResources
from transfusion.train.checkpoints.checkpoint import Checkpoints

commit = Checkpoints._commit

def die(checkpoints, record):
    if record.step == 4:
        os._exit(9)
    commit(checkpoints, record)

Checkpoints._commit = die
folder = Path(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
train(folder, resources=TrainResources(checkpoint_async=True))
"""


def test_killed_between_the_files_and_the_record_the_save_never_was(calm, tmp_path, caplog):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 9
    assert steps_saved(tmp_path) == [2]
    assert list((tmp_path / "run/checkpoints/data").rglob("step-000004/*"))
    with caplog.at_level("INFO", "transfusion"):
        outcome = train(tmp_path)
    assert "resumed after step 2 of 6" in caplog.text
    assert_same(calm, (tmp_path, outcome))


def test_without_an_average_the_weights_stand_for_it_and_take_no_memory_twice(tmp_path):
    trainee = make_trainee(config(ema_decay=0.0), MadeUpSource())
    state = TrainingState(trainee.model, trainee.config)
    for name, weight in trainee.model.named_parameters():
        average = local(state.averaged.weights[name])
        assert average.untyped_storage().data_ptr() == local(weight).untyped_storage().data_ptr()
    with pytest.raises(InterruptedError):
        train(tmp_path / "a", settings=config(ema_decay=0.0), stop_after=5)
    resumed, whole = (
        (tmp_path / name, train(tmp_path / name, settings=config(ema_decay=0.0))) for name in "ab"
    )
    assert_same_weights(resumed, whole)
    raw, average = (load(result_file(*whole, name)) for name in WEIGHTS)
    assert all(torch.equal(raw[name], average[name]) for name in raw)
