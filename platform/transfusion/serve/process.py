"""The engine in a process of its own: its steps do not wait for HTTP, whose interpreter is another.

The two talk over a pair of sockets, in pickles. To the engine go requests and what is given up; back comes one
message a step, with what was told of requests and what the step did. When either end is gone the other notices:
the engine's process ends, and callers hear that their request failed.
"""

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from transfusion.errors import ArtifactError
from transfusion.sample.events import Ended, Failed
from transfusion.sample.jobs import Listener
from transfusion.sample.rows import Request
from transfusion.serve.guards import KEYS
from transfusion.serve.loop import EngineGoneError, count_step
from transfusion.serve.messages import (
    Cancel,
    EngineArgs,
    Refused,
    Stepped,
    Submit,
    receive,
    send,
)
from transfusion.serve.metrics import Metrics


class EngineProcess:
    """A `Runner` whose engine is in a process beside this one."""

    def __init__(self, args: EngineArgs, *, metrics: Metrics) -> None:
        """Starts the process; `wait_until_ready` before anything is asked."""
        self._metrics = metrics
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 our own module
                [sys.executable, "-m", "transfusion.serve.engine_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
            )
        self._connection = Connection(ours.detach())
        self._sending = threading.Lock()
        self._tickets = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._lock = threading.Lock()
        self._heard_at = time.perf_counter()
        self._is_idle = True
        self._is_closing = False
        self._is_dead = False
        self._failed_steps = 0
        self._max_rows = args.max_rows
        self._send(args)

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    def wait_until_ready(self) -> float:
        """Returns the seconds of its warm-up.

        Raises:
            ArtifactError: The model cannot be loaded.
            RuntimeError: The process ended; its log says why.
        """
        try:
            told = receive(self._connection)
        except EOFError:
            raise RuntimeError(
                f"the engine's process ended at its start with status {self._process.wait()}"
            ) from None
        if isinstance(told, Refused):
            self.close()
            raise ArtifactError(told.message)
        self._metrics.max_rows(self._max_rows)
        threading.Thread(target=self._listen, name="engine events", daemon=True).start()
        return float(told.warm_up_s)

    @property
    def step_age_s(self) -> float:
        """See `Runner`; the way here and back is counted in."""
        # Callers who gave up do not make a step that hangs an end.
        return 0.0 if self._is_idle else time.perf_counter() - self._heard_at

    @property
    def failed_steps(self) -> int:
        """See `Runner`."""
        return self._failed_steps

    @property
    def is_dead(self) -> bool:
        """See `Runner`."""
        return self._is_dead

    def submit(self, requests: Sequence[Request], listener: Listener) -> int:
        """See `Runner`."""
        ticket = next(self._tickets)
        with self._lock:
            if self._is_idle:
                self._heard_at, self._is_idle = time.perf_counter(), False
            self._asked[ticket] = _Asked(listener, set(range(len(requests))))
        self._send(Submit(ticket, requests))
        if self._is_dead:
            # Nobody reads any more that it is.
            self._fail()
        return ticket

    def cancel(self, ticket: int) -> None:
        """See `Runner`."""
        with self._lock:
            self._asked.pop(ticket, None)
        self._send(Cancel(ticket))

    def close(self) -> None:
        """See `Runner`."""
        self._is_closing = True
        # It keeps nothing that would have to be put away; `_listen` reads that it is gone.
        self._process.kill()
        self._process.wait()

    def _send(self, message: Any) -> None:
        with self._sending:
            try:
                send(self._connection, message)
            except OSError:
                # The engine is gone: `_listen` notices too, and tells those who wait.
                self._is_dead = not self._is_closing

    def _listen(self) -> None:
        while True:
            try:
                told = receive(self._connection)
            except (EOFError, OSError):
                break
            self._hear(told)
        self._is_dead = not self._is_closing
        self._fail()

    def _hear(self, told: Stepped) -> None:
        with self._lock:
            self._heard_at = time.perf_counter()
            self._is_idle = told.step is None and not self._asked
            if told.step is not None:
                self._failed_steps = told.step.failed_after(self._failed_steps)
        for ticket, index, event in told.told:
            with self._lock:
                asked = self._asked.get(ticket)
                if asked is None:
                    continue
                if isinstance(event, (Ended, Failed)):
                    asked.unfinished.discard(index)
                if not asked.unfinished:
                    del self._asked[ticket]
            asked.listener(index, event)
        count_step(self._metrics, told.step)

    def _fail(self) -> None:
        """Nothing comes any more of what was asked."""
        with self._lock:
            left, self._asked = self._asked, {}
        for asked in left.values():
            for index in asked.unfinished:
                asked.listener(index, Failed(EngineGoneError()))


def _environment() -> dict[str, str]:
    """Ours, its path as Ray, pytest or a notebook have extended it; without the keys, which it has no use for."""
    path = os.pathsep.join(filter(None, sys.path))
    return {name: value for name, value in os.environ.items() if name != KEYS} | {
        "PYTHONPATH": path
    }


@dataclass(slots=True)
class _Asked:
    """Requests that were submitted together."""

    listener: Listener
    unfinished: set[int]
