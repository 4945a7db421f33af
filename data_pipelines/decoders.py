"""Decoders in processes of their own: an image that crashes or never ends costs itself and nothing else.

A fault inside a codec kills a process, and nothing stops a codec that spins inside a thread; so whatever is
decoded for a job is decoded in a child. That costs 20 to 50 microseconds an image (bytes there by a socket, pixels
back by shared memory), and takes Python's share of decoding away from the encoder's process.
"""

import atexit
import functools
import math
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipelines.decode import Reject
from data_pipelines.decoder_process import Answer, Died, Done, Failed
from data_pipelines.preparation import Preparation, Prepared

FAR_END = "import sys; from data_pipelines.decoder_process import main; main(sys.argv[1:])"
"""Imported rather than run as a module: answers name classes of that module, and not of `__main__`."""

SLOT_BYTES = 64 * 2**20
"""Room for the pixels of a crop (4,700 px squared); only what is used of it is real memory."""

ATTEMPTS = 2
"""A crash or a time-out may have been the machine's: an image is tried once more, in a fresh process."""


class Decoders:
    """Some child processes, each of which prepares one image at a time. Safe for many threads.

    Memory: in each child what an image within its limits takes, and a slot for its crop.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._free: queue.SimpleQueue[_Channel] = queue.SimpleQueue()
        pairs = [socket.socketpair() for _ in range(num_processes)]
        slots = [_shared_memory() for _ in range(num_processes)]
        far_ends = [
            number
            for (_, far), slot in zip(pairs, slots, strict=True)
            for number in (far.fileno(), slot)
        ]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", FAR_END, str(SLOT_BYTES), *map(str, far_ends)],
            pass_fds=far_ends,
            # Python finds there what it finds here; decoding one image leaves nothing to do for threads.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
            # Control-C at a terminal is for this process; the children end when their sockets do.
            start_new_session=True,
        )
        self._channels = []
        for (near, far), slot in zip(pairs, slots, strict=True):
            far.close()
            channel = _Channel(Connection(near.detach()), mmap.mmap(slot, SLOT_BYTES))
            os.close(slot)
            self._channels.append(channel)
            self._free.put(channel)

    @property
    def usable(self) -> bool:
        """False once a child was lost in a way that leaves its channel in doubt."""
        return not any(channel.lost for channel in self._channels)

    def prepare(self, preparation: Preparation, data: bytes) -> Prepared:
        """Prepares an image in a child; waits for one to be free.

        Raises:
            Reject: The file cannot be used; `decoder_crashed` and `decoder_timeout` among the reasons.
            RuntimeError: Something is wrong that another image would meet too.
        """
        channel = self._free.get()
        try:
            for _ in range(ATTEMPTS):
                match answer := channel.ask(preparation, data):
                    case Done():
                        return Prepared(channel.pixels(answer.shape), answer.facts)
                    case Reject():
                        raise answer
                    case Failed():
                        raise RuntimeError(f"preparing an image failed:\n{answer.error}")
                    case Died(signal.SIGKILL):
                        # No codec does that: the kernel did for want of memory, or a person.
                        channel.lost = True
                        raise RuntimeError(
                            "a decoder was killed from outside: out of memory (lower limits.max_pixels, or "
                            "give an actor fewer CPUs and so fewer decoders)"
                        )
                    case Died():
                        died = answer
        finally:
            self._free.put(channel)
        if died.signal in (signal.SIGPROF, signal.SIGALRM):
            cpu_s = preparation.limits.decode_cpu_s
            raise Reject("decoder_timeout", f"more than {cpu_s:g} CPU seconds, {ATTEMPTS} times")
        name = signal.Signals(died.signal).name if died.signal else "an exit"
        raise Reject("decoder_crashed", f"{name} ended the decoder, {ATTEMPTS} times")

    def close(self) -> None:
        """Ends the children."""
        for channel in self._channels:
            channel.close()
        self._process.wait(timeout=60)


class _Channel:
    """This side of one child."""

    def __init__(self, connection: Connection, slot: mmap.mmap) -> None:
        self._connection, self._slot = connection, slot
        self.lost = False

    def ask(self, preparation: Preparation, data: bytes) -> Answer:
        try:
            self._connection.send_bytes(_pickled(preparation))
            self._connection.send_bytes(data)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self.lost = True
            what = error or "end of file"
            raise RuntimeError(f"the decoder's process is gone: {what}") from error

    def pixels(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
        found = np.frombuffer(self._slot, np.uint8, count=math.prod(shape))
        return found.reshape(shape).copy()

    def close(self) -> None:
        self._connection.close()


def running_decoders(num_processes: int) -> Decoders:
    """The decoders of this process: started when first asked for, ended with it."""
    with _starting:
        found = _running.get(num_processes)
        if found is None or not found.usable:
            if found is not None:
                found.close()
            found = _running[num_processes] = Decoders(num_processes)
        return found


_running: dict[int, Decoders] = {}
_starting = threading.Lock()


@atexit.register
def _close_all() -> None:
    for decoders in _running.values():
        decoders.close()


@functools.lru_cache(maxsize=4)
def _pickled(preparation: Preparation) -> bytes:
    return pickle.dumps(preparation)


def _shared_memory() -> int:
    """A file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("decoder")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.truncate(number, SLOT_BYTES)
    return number
