"""Ends a process whose training stands still, with the stacks of all its threads.

A rank that waits for another, or for a disk, would wait until a person looks. Ray restarts what exits.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType

EXIT_CODE = 70
"""What a process that hung exits with."""

TELL_WITHIN_S = 20.0
"""So long the report may take: what hangs may be the place that it goes to."""


class Watchdog:
    """Exits the process when `beat` was not called for a time, from a thread; a context manager.

    Args:
        told: Is handed the stacks, to be kept where people look; its failure stops nothing.
    """

    def __init__(self, *, timeout_s: float, told: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._told = told
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Says that training goes on."""
        self._last = time.monotonic()
        # In C, for a hang that holds the interpreter: then no thread of ours would run.
        after_s = self._timeout_s + TELL_WITHIN_S + 10.0
        faulthandler.dump_traceback_later(after_s, exit=True, file=sys.__stderr__ or sys.stderr)

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(max(self._last + self._timeout_s - time.monotonic(), 0.05)):
            silent_s = time.monotonic() - self._last
            if silent_s >= self._timeout_s:
                self._end(silent_s)

    def _end(self, silent_s: float) -> None:
        with tempfile.TemporaryFile("w+") as place:
            faulthandler.dump_traceback(place, all_threads=True)
            place.seek(0)
            stacks = place.read()
        head = (
            f"training stood still for {silent_s:.0f} s; process {os.getpid()} ends, to be started again (where a "
            "step, validation or checkpoint does take so long, raise train.hang_timeout_s in the profile); its "
            "stacks:\n"
        )
        sys.stderr.write(head + stacks)
        sys.stderr.flush()
        telling = threading.Thread(target=self._tell, args=(head + stacks,), daemon=True)
        telling.start()
        telling.join(TELL_WITHIN_S)
        # Whatever hangs would hang an orderly exit too.
        os._exit(EXIT_CODE)

    def _tell(self, stacks: str) -> None:
        with contextlib.suppress(Exception):
            self._told(stacks)
