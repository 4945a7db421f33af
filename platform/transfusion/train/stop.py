"""SIGTERM asks a training process to stop after the step in flight, with a checkpoint.

A machine that is taken away is announced like that, some time before. The ranks agree on the step in the sum
that a step makes anyway (`Trainee.forward_backward`).
"""

import signal
import threading
from types import FrameType

from transfusion.errors import TransfusionError

_asked = threading.Event()


class StoppedError(TransfusionError):
    """Training ended before its last step because it was asked to; the checkpoint is written."""


def listen() -> None:
    """Takes SIGTERM as the request from now on; to be called in the main thread of the process.

    The second one does what the first would have done before.
    """
    _asked.clear()
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        _asked.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, on_sigterm)


def asked() -> bool:
    """Whether this process was asked to stop since it began to listen."""
    return _asked.is_set()
