"""Advice between drivers, and metrics that never hurt a run."""

import json
import logging
import subprocess
import sys
import threading
import time
import types

import pytest

from transfusion.storage.store import open_store
from transfusion.train import lease as lease_module
from transfusion.train.lease import lease
from transfusion.train.metrics import Metrics, Tracker, values_digest
from transfusion.train.tracking import make_tracker

LOG = logging.getLogger("transfusion.test")


def holder(store):
    return json.loads(store.read("run/lease.json"))


def test_a_lease_is_there_while_held_and_gone_after(tmp_path):
    store = open_store(str(tmp_path))
    with lease(store, "run", log=LOG):
        assert holder(store)["pid"] > 0
    assert not store.exists("run/lease.json")


def test_a_living_driver_is_waited_for_and_a_killed_one_is_not(tmp_path, caplog):
    store = open_store(str(tmp_path))
    program = (
        "import logging, sys, time\n"
        "from transfusion.storage.store import open_store\n"
        "from transfusion.train.lease import lease\n"
        "with lease(open_store(sys.argv[1]), 'run', log=logging.getLogger()):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        began = time.monotonic()
        with caplog.at_level(logging.INFO):
            # Killed while we wait, as by the kernel: nothing is cleaned up, and we go on at once.
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -9 {other.pid}"])
            waiting = lease(store, "run", log=LOG)
            # The zombie must be reaped for its number to be free.
            threading.Thread(target=other.wait, daemon=True).start()
            with waiting:
                waited = time.monotonic() - began
        assert "is training this" in caplog.text
        assert 1.5 < waited < 15
    finally:
        other.kill()


def test_a_silent_driver_on_another_machine_is_given_up(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    record = {"owner": "x", "host": "elsewhere", "boot": "y", "pid": 1, "started": "1"}
    store.write("run/lease.json", json.dumps({**record, "beat": time.time() - 3}).encode())
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 4.0)
    began = time.monotonic()
    with lease(store, "run", log=LOG):
        assert 0.5 < time.monotonic() - began < 5


def test_a_failing_tracker_is_told_once_and_the_rows_stay(caplog):
    def broken(row):
        raise ConnectionError("no route")

    closed = []
    metrics = Metrics(tracker=Tracker(track=broken, close=lambda: closed.append(1)))
    for step in (1, 2):
        metrics.add("train", step=step, values={"loss": 1.0})
    metrics.close()
    assert not closed
    assert [row["step"] for row in metrics.unsaved] == [1, 2]
    assert caplog.text.count("tracking stopped: ConnectionError: no route") == 1


def test_a_tracker_that_cannot_close_hurts_nothing(caplog):
    def broken():
        raise ConnectionError("no route")

    Metrics(tracker=Tracker(track=lambda _: None, close=broken)).close()
    assert "tracking stopped: ConnectionError: no route" in caplog.text


def test_rows_are_saved_once_and_then_not_held():
    metrics = Metrics()
    metrics.add("train", step=2, values={"loss": 0.5})
    assert [json.loads(line)["step"] for line in metrics.take_unsaved().splitlines()] == [2]
    assert metrics.take_unsaved() == b""
    assert metrics.unsaved == []


def test_the_digest_is_over_values_and_not_over_durations():
    def rows(seconds, loss):
        metrics = Metrics()
        metrics.add("train", step=1, values={"loss": loss}, timing={"step_s": seconds})
        return metrics.unsaved

    assert values_digest(rows(1.0, 0.5)) == values_digest(rows(2.0, 0.5))
    assert values_digest(rows(1.0, 0.5)) != values_digest(rows(1.0, 0.25))


ROW = {"step": 1, "kind": "train", "values": {"loss": 2.0}, "timing": {"step_s": 0.1}}


def tracked(folder, tracking):
    return make_tracker(
        tracking,
        run_id="a" * 16,
        name="test",
        config={"steps": 2},
        store=open_store(str(folder)),
        folder="run",
    )


def test_wandb_without_a_key_writes_offline_and_the_files_stay(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = tracked(tmp_path, "wandb")
    assert tracker is not None
    tracker.track(ROW)
    tracker.close()
    assert list((tmp_path / "run/tracking").rglob("*.wandb"))


def test_tensorboard_gets_every_value_as_a_scalar(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "run/tracking")

        def add_scalar(self, *scalar):
            written.append(scalar)

        def close(self):
            written.append("closed")

    package = types.ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    tracker = tracked(tmp_path, "tensorboard")
    tracker.track(ROW)
    tracker.close()
    assert written == [("train/loss", 2.0, 1), ("train/step_s", 0.1, 1), "closed"]


def test_tensorboard_without_its_package_is_said_and_hurts_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tracked(tmp_path, "tensorboard") is None
    assert "tracking with tensorboard is off" in caplog.text
    assert "pip install 'transfusion[tensorboard]'" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_lease_that_is_no_lease_is_no_obstacle(tmp_path, text):
    store = open_store(str(tmp_path))
    store.write("run/lease.json", text.encode())
    with lease(store, "run", log=LOG):
        assert holder(store)["owner"]
