"""A decoder that does what broken codecs do, to images that are marked for it."""

import ctypes
import os
import signal
import time
from pathlib import Path

from data_pipelines.inspect.thumbnails import Thumbnails
from data_pipelines.preparation import Preparation, Prepared

MARK = b"hostile:"


def marked(data: bytes, fault: str) -> bytes:
    """The image with what befalls it; bytes behind its end are no part of an image."""
    return data + MARK + fault.encode()


class HostilePreparation(Preparation):
    """As `Preparation`, but for the marked."""

    def __call__(self, data: bytes) -> Prepared:
        fault = data.partition(MARK)[2].decode()
        if fault == "segfault":
            ctypes.string_at(0)
        elif fault == "abort":
            os.abort()
        elif fault == "exit":
            os._exit(3)
        elif fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "spin":
            while True:
                pass
        elif fault == "bug":
            raise LookupError("no such thing")
        elif fault.startswith("once "):
            seen = Path(fault[5:])
            if not seen.exists():
                seen.touch()
                ctypes.string_at(0)
        elif fault == "slow":
            time.sleep(0.05)
        return super().__call__(data)


class HostileThumbnails(HostilePreparation, Thumbnails):
    """As `Thumbnails`, but for the marked."""
