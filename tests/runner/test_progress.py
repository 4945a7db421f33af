"""How fast work goes and how long the rest takes, as people are told."""

import logging

import pytest

from transfusion.stage import Progress


def test_neither_what_was_there_nor_the_time_before_the_start_is_in_the_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    with Progress(logging.getLogger("work"), total=1200, unit="steps") as progress:
        now[0] += 30.0  # workers are started
        progress.start_at(200)
        assert (progress.rate, progress.left) == (0.0, "?")
        now[0] += 20.0
        progress.advance(100, loss="0.5")
        assert (progress.rate, progress.left) == (5.0, "3m00s")
        now[0] += 180.0
        progress.advance(900, loss="0.4")
    assert [record.message for record in caplog.records] == [
        "300/1,200 steps  5/s, 3m00s left  loss 0.5",
        "1,200/1,200 steps  5/s  loss 0.4",
    ]
