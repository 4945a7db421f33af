"""A run that is interrupted says what is kept, whichever signal ends it and whatever Ray does with signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from transfusion.errors import ArtifactError, SpecError
from transfusion.resources import Resources, TrainResources
from transfusion.runner.run import check_workers
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store
from transfusion.train.on_ray.room import check_room

JOB = "jobs/smoke.yaml"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_training_ends_in_a_line_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "transfusion.cli", "run", JOB, f"store={tmp_path}"]
    long = [*command, "stages.train.config.steps=500", "stages.mixture.config.num_steps=500"]
    told = []
    with subprocess.Popen(
        [*long, "--until", "train"], stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            told.append(line)
            if re.search(r"train +\d+/500 steps", line):
                os.kill(running.pid, number)
    assert running.returncode == 128 + signal.SIGINT
    assert "interrupted: what is finished is kept" in told[-1], told[-5:]
    assert "SIGTERM received" not in "".join(told)


def test_workers_that_one_machine_can_never_hold_are_refused_at_once() -> None:
    machine = {"CPU": 2.0}
    check_room(TrainResources(num_workers=2), machine)
    check_room(TrainResources(num_workers=8, min_workers=1), machine)
    with pytest.raises(
        ArtifactError, match=r"2 workers of 1 GPU each need 2 and this machine has 0"
    ):
        check_room(TrainResources(num_workers=2, gpus_per_worker=1), machine)
    with pytest.raises(ArtifactError, match=r"train\.cpus_per_worker in the profile"):
        check_room(TrainResources(num_workers=2, cpus_per_worker=4), machine)


def test_workers_without_a_lane_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    job = read_job(Path(JOB), [f"store={tmp_path}", "stages.mixture.config.lanes=3"])
    plan = plan_job(job, open_store(str(tmp_path)))
    check_workers(plan, Resources(train=TrainResources(num_workers=2)))
    with pytest.raises(SpecError) as caught:
        check_workers(plan, Resources(train=TrainResources(num_workers=4)))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "stages.autoencoder.config.lanes",
        "stages.mixture.config.lanes",
    ]
