"""Decoders in processes of their own: an image that crashes or never ends costs itself and nothing else.

A fault inside a codec kills a process, and nothing stops a codec that spins inside a thread; so whatever is
decoded for a job is decoded in a child. Bytes go there by a socket, a few images at a time; pixels come back by
shared memory. It also takes Python's share of decoding away from the encoder's process.
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
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from data_pipelines.decode import Reject
from data_pipelines.decoder_process import Answer, Died, Done, Failed
from data_pipelines.preparation import Preparation, Prepared

FAR_END = "import sys; from data_pipelines.decoder_process import main; main(sys.argv[1:])"
"""Imported rather than run as a module: answers name classes of that module, and not of `__main__`."""

SLOT_BYTES = 64 * 2**20
"""Room for the crops of one request; only what is used of it is real memory."""


class DecoderLostError(RuntimeError):
    """A child is gone for a reason that is no image's."""


class Decoders:
    """Some child processes, each of which prepares a few images at a time. Safe for many threads.

    Memory: in each child what one image within its limits takes, and a slot for the crops.
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

    def prepare(self, preparation: Preparation, images: Sequence[bytes]) -> list[Prepared | Reject]:
        """Prepares a few images in a child; waits for one to be free.

        A crash or a time-out may have been the machine's, and which image it was is not known: after one, each is
        tried once more, alone in a fresh process. One that ends that too is rejected as `decoder_crashed` or
        `decoder_timeout`.

        Raises:
            RuntimeError: Something is wrong that another image would meet too; DecoderLostError where it took a
                child with it.
        """
        channel = self._free.get()
        try:
            found = channel.ask(preparation, images)
            if not isinstance(found, Died):
                return found
            prepared: list[Prepared | Reject] = []
            for data in images:
                alone = channel.ask(preparation, [data])
                prepared += [_reject(alone, preparation)] if isinstance(alone, Died) else alone
            return prepared
        finally:
            self._free.put(channel)

    def close(self) -> None:
        """Ends the children; one that is at an image is not waited for."""
        for channel in self._channels:
            channel.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class _Channel:
    """This side of one child."""

    def __init__(self, connection: Connection, slot: mmap.mmap) -> None:
        self._connection, self._slot = connection, slot
        self.lost = False

    def ask(
        self, preparation: Preparation, images: Sequence[bytes]
    ) -> list[Prepared | Reject] | Died:
        try:
            self._connection.send((_pickled(preparation), images))
            answers: list[Answer] | Died = self._connection.recv()
        except (EOFError, OSError) as error:
            self.lost = True
            what = error or "end of file"
            raise DecoderLostError(f"the decoder's process is gone: {what}") from error
        if isinstance(answers, Died):
            # No codec sends SIGKILL: the kernel did for want of memory, or a person.
            if answers.signal != signal.SIGKILL:
                return answers
            self.lost = True
            raise DecoderLostError(
                "a decoder was killed from outside: out of memory (lower limits.max_pixels, or give an actor "
                "fewer CPUs and so fewer decoders)"
            )
        found: list[Prepared | Reject] = []
        used_bytes = 0
        for place, answer in enumerate(answers):
            match answer:
                case Reject():
                    found.append(answer)
                case Failed():
                    raise RuntimeError(f"preparing image {place} failed: {answer.error}")
                case Done():
                    size_bytes = math.prod(answer.shape)
                    flat = np.frombuffer(self._slot, np.uint8, size_bytes, used_bytes)
                    found.append(Prepared(flat.reshape(answer.shape).copy(), answer.facts))
                    used_bytes += size_bytes
        return found

    def close(self) -> None:
        self._connection.close()


def _reject(died: Died, preparation: Preparation) -> Reject:
    if died.signal in (signal.SIGPROF, signal.SIGALRM):
        cpu_s = preparation.limits.decode_cpu_s
        return Reject("decoder_timeout", f"took more than {cpu_s:g} CPU seconds, twice")
    name = signal.Signals(died.signal).name if died.signal else "an exit"
    return Reject("decoder_crashed", f"{name} ended the decoder, twice")


def running_decoders(num_processes: int) -> Decoders:
    """The decoders of this process: started when first asked for, ended with it."""
    with _starting:
        found = _running.get(num_processes)
        if found is None or not found.usable:
            if found is not None:
                # Not closed: another thread may be at a good child of it.
                _retired.append(found)
            found = _running[num_processes] = Decoders(num_processes)
        return found


_running: dict[int, Decoders] = {}
_retired: list[Decoders] = []
_starting = threading.Lock()


@atexit.register
def _close_all() -> None:
    for decoders in [*_running.values(), *_retired]:
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
