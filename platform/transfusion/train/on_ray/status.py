"""How far the workers are and what they say, from them to the driver's terminal."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transfusion.stage import StageContext

POLL_S = 1.0

SILENCE_S = 60.0
"""After which silent workers are told of, and again each time the silence has doubled."""

KEPT_MESSAGES = 100
"""Of a rank: what is published is sent whole each time, and a run of weeks says a lot."""


class Teller(logging.Handler):
    """Publishes how far this rank is, and what it logs, in Ray's key-value store.

    The first rank does at most every `POLL_S`; the others say nothing but warnings, each at once.

    A report through Ray Train would be a barrier over all ranks, and ends at the controller, not the driver;
    Ray's forwarding of logs is a wall of other people's lines.
    """

    def __init__(self, key: str, *, rank: int) -> None:
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self._key = f"{key}/{rank}"
        self._rank = rank
        self._status: dict[str, Any] = {
            "pid": os.getpid(), "step": 0, "shown": {}, "messages": [], "dropped": 0,
        }  # fmt: skip
        self._published = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        messages = self._status["messages"]
        messages.append((record.levelno, record.getMessage()))
        if len(messages) > KEPT_MESSAGES:
            del messages[0]
            self._status["dropped"] += 1
        if self._rank or record.levelno >= logging.ERROR:
            # Nothing else publishes for other ranks than the first; and after an error the process may end.
            self.publish()

    def tell(self, step: int, shown: Mapping[str, str]) -> None:
        """Notes the number of finished steps and what to show beside it."""
        self._status |= {"step": step, "shown": dict(shown)}
        if self._rank == 0 and time.monotonic() - self._published >= POLL_S:
            self.publish()

    def publish(self) -> None:
        """Publishes at once; the display must never be what stops a run."""
        from ray.experimental.internal_kv import _internal_kv_put

        self._published = time.monotonic()
        try:
            _internal_kv_put(self._key, json.dumps(self._status))
        except Exception as error:
            # By a logger that does not end here again.
            logging.getLogger(__name__).debug("no status: %s", error)


@contextmanager
def follow(
    key: str, context: StageContext, *, steps: int, workers: int, room: Callable[[], str]
) -> Iterator[None]:
    """Shows on the driver how far the workers are, from a thread: `fit` blocks.

    Args:
        room: What the workers need and what the cluster has, told beside a silence: they may wait for machines.
    """
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

    stop = threading.Event()
    keys = [f"{key}/{rank}" for rank in range(workers)]

    def watch() -> None:
        with context.progress(total=steps, unit="steps") as progress:
            told: dict[tuple[str, int], int] = {}
            said: set[str] = set()
            begun = False
            heard, latest, bearable_s = time.monotonic(), None, SILENCE_S
            while True:
                ended = stop.wait(POLL_S / 2)
                silent_s = time.monotonic() - heard
                if silent_s > bearable_s:
                    context.log.info("no word of the workers for %.0f s: %s", silent_s, room())
                    bearable_s *= 2
                for place in keys:
                    try:
                        status = json.loads(_internal_kv_get(place) or b"null")
                    except Exception as error:
                        # The display must never be what stops a run.
                        context.log.debug("no status: %s", error)
                        continue
                    if not status:
                        continue
                    if place == keys[0] and status != latest:
                        heard, latest, bearable_s = time.monotonic(), status, SILENCE_S
                    # A worker that was restarted begins its messages anew.
                    source = (place, status["pid"])
                    new = max(told.get(source, 0) - status["dropped"], 0)
                    for level, line in status["messages"][new:]:
                        # What every rank warns of is said once.
                        if line not in said:
                            context.log.log(level, line)
                        said.add(line)
                    told[source] = status["dropped"] + len(status["messages"])
                    if place == keys[0]:
                        if not begun:
                            progress.start_at(status["step"])
                            begun = True
                        elif status["step"] > progress.done:
                            progress.advance(status["step"] - progress.done, **status["shown"])
                if ended:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        for place in keys:
            _internal_kv_del(place)
