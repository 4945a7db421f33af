"""What workers say reaches the driver once, however much it is, and never stops a run."""

import json
import logging
from types import SimpleNamespace

import pytest
from ray.experimental import internal_kv

from tests.serve.serving import until
from tests.train.worlds import stage_context
from transfusion.train.on_ray import status
from transfusion.train.on_ray.status import KEPT_MESSAGES, Teller, follow


@pytest.fixture
def kept(monkeypatch):
    """Ray's key-value store, as a dictionary."""
    store = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_put", store.__setitem__)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", store.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key: store.pop(key, None))
    return store


def say(teller, line, level=logging.INFO):
    teller.handle(logging.LogRecord("x", level, __file__, 1, line, None, None))


def test_every_line_is_told_once_and_few_are_kept(kept, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(status, "POLL_S", 0.01)
    teller = Teller("key", rank=0)
    with (
        caplog.at_level(logging.INFO, "transfusion.test"),
        follow("key", stage_context(tmp_path), steps=9, workers=1, room=str),
    ):
        for part in range(3):
            for number in range(KEPT_MESSAGES - 10):
                say(teller, f"line {part}-{number}.")
            teller.publish()
            until(lambda part=part: f"line {part}-{KEPT_MESSAGES - 11}." in caplog.text)
        assert len(json.loads(kept["key/0"])["messages"]) == KEPT_MESSAGES
    told = [line for line in caplog.messages if line.startswith("line")]
    assert told == [
        f"line {part}-{number}." for part in range(3) for number in range(KEPT_MESSAGES - 10)
    ]
    assert kept == {}


def test_workers_that_are_silent_are_told_of_beside_what_they_may_wait_for(
    kept, monkeypatch, caplog, tmp_path
):
    """Before the first word and after the last; a silence that goes on is told less and less often."""
    clock = [0.0]
    monkeypatch.setattr(status, "POLL_S", 0.01)
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with (
        caplog.at_level(logging.INFO, "transfusion.test"),
        follow("key", stage_context(tmp_path), steps=9, workers=1, room=lambda: "4 of 8 GPU"),
    ):
        for clock[0] in (61.0, 130.0):
            until(lambda: f"for {clock[0]:.0f} s" in caplog.text)
        teller = Teller("key", rank=0)
        say(teller, "begun")
        teller.publish()
        until(lambda: "begun" in caplog.text)
        clock[0] = 200.0
        until(lambda: "for 70 s" in caplog.text)
    assert [line for line in caplog.messages if "no word" in line] == [
        f"no word of the workers for {seconds} s: 4 of 8 GPU" for seconds in (61, 130, 70)
    ]


def test_a_warning_of_any_rank_is_published_at_once(kept):
    first, other = Teller("key", rank=0), Teller("key", rank=3)
    for teller in (first, other):
        say(teller, "a shard was read again", logging.WARNING)
    assert set(kept) == {"key/3"}, "the first rank's goes with its next step"
    assert json.loads(kept["key/3"])["messages"] == [[logging.WARNING, "a shard was read again"]]
    first.tell(1, {})
    assert "key/0" in kept


def test_a_store_that_does_not_answer_stops_no_training(kept, monkeypatch):
    def gone(*_):
        raise ConnectionError("no GCS")

    teller = Teller("key", rank=0)
    with monkeypatch.context() as away:
        away.setattr(internal_kv, "_internal_kv_put", gone)
        say(teller, "a line")
        teller.tell(3, {"loss": "1.0"})
    assert kept == {}
    teller.publish()
    published = json.loads(kept["key/0"])
    assert published["step"] == 3
    assert published["messages"] == [[logging.INFO, "a line"]]
