"""A run that is asked to end ends with a checkpoint; one that stands still ends with its stacks."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from pydantic import ValidationError
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from tests.train.outcomes import assert_same_weights, rows, steps_saved
from tests.train.worlds import MadeUpSource, config, in_world, train, train_and_keep
from transfusion.resources import TrainResources
from transfusion.train import stop
from transfusion.train.stop import StoppedError
from transfusion.train.watchdog import EXIT_CODE


class Slow(MadeUpSource):
    """Reads a step's data on one rank when the step before has begun; then something happens, once."""

    def __init__(self, at: int, happens) -> None:
        super().__init__()
        self._at = at
        self._happens = happens

    def micro_batch(self, step: int, lane: int):
        if step == self._at and dist.get_rank() == 1:
            self._at = -1
            self._happens()
        return super().micro_batch(step, lane)


def be_terminated(folder: Path) -> None:
    """For `in_world`: rank 1 gets SIGTERM; every rank leaves what it was told."""
    stop.listen()
    source = Slow(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        train(folder, settings=config(checkpoint_every_steps=5), source=source, stop=stop.asked)
    except StoppedError as error:
        (folder / f"told-{dist.get_rank()}").write_text(str(error))


def go_on(folder: Path) -> None:
    outcome = train(folder, settings=config(checkpoint_every_steps=5))
    if dist.get_rank() == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))


def test_sigterm_to_one_rank_ends_all_with_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    rough, calm = tmp_path / "rough", tmp_path / "calm"
    for folder in (rough, calm):
        folder.mkdir()
    in_world(2, be_terminated, rough)
    told = {(rough / f"told-{rank}").read_text() for rank in (0, 1)}
    (step,) = steps_saved(rough)
    assert told == {
        f"training was asked to stop (SIGTERM) and stopped after step {step} of 6; the checkpoint of it is "
        "written: the same command goes on from there"
    }
    # Asked for while step 2's data are read, so neither before step 1's update nor at the end.
    assert step in (2, 3, 4)
    in_world(2, go_on, rough)
    in_world(2, train_and_keep, calm)
    made, expected = (json.loads((at / "outcome.json").read_text()) for at in (rough, calm))
    assert rows(rough, made) == rows(calm, expected)
    assert_same_weights((rough, made), (calm, expected))


def stand_still(folder: Path, hang_timeout_s: float) -> None:
    """For `in_world`: rank 1 waits for ever for its data, rank 0 for rank 1."""
    resources = TrainResources(hang_timeout_s=hang_timeout_s, collective_timeout_s=7200)
    train(folder, source=Slow(3, lambda: time.sleep(3600)), resources=resources)


def test_a_run_that_stands_still_ends_with_the_stacks_of_its_threads(tmp_path):
    began = time.monotonic()
    with pytest.raises(ProcessExitedException) as ended:
        in_world(2, stand_still, tmp_path, 5.0)
    assert ended.value.exit_code == EXIT_CODE
    assert time.monotonic() - began < 60
    stacks = [path.read_text() for path in (tmp_path / "run/faults").glob("hang-*-rank-*.txt")]
    assert stacks
    for text in stacks:
        assert text.startswith("training stood still for 5 s")
        # Of rank 0 where it waits for a message, of rank 1 where it waits for its data.
        assert "in to_end" in text
        assert "all_gather" in text or "in micro_batch" in text


def test_stacks_are_written_before_a_message_is_given_up():
    usual = TrainResources()
    assert usual.hang_timeout_s < usual.collective_timeout_s
    with pytest.raises(
        ValidationError, match="collective_timeout_s must be more than hang_timeout_s"
    ):
        TrainResources(hang_timeout_s=1800, collective_timeout_s=600)


def test_a_message_between_ranks_that_never_comes_ends_the_one_that_waits(tmp_path):
    began = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=r"(?i)timed out|timeout"):
        in_world(2, stand_still, tmp_path, 3600.0, timeout_s=3.0)
    assert time.monotonic() - began < 60


def test_the_second_sigterm_does_what_it_always_did():
    before = signal.getsignal(signal.SIGTERM)
    caught = []
    try:
        signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
        stop.listen()
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        assert not caught
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
