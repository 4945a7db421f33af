"""The far end of `decoders`: processes that prepare images and may die of them.

The process started only forks a worker for each pair of a socket and a shared slot of memory, and forks it anew,
saying so, when it dies: a fork of a small process with one thread costs a millisecond. A worker reads a request (a
pickled `Preparation`, the bytes of some images), leaves the pixels in its slot, and answers with the rest. It ends
by itself: the kernel kills it when an image has used up its CPU seconds, and when the other side is gone it reads
the end of its socket.
"""

import contextlib
import functools
import math
import mmap
import os
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

from data_pipelines.decode import Reject
from data_pipelines.preparation import Facts, Preparation

WALL_PER_CPU = 10
"""An image may take that many times its CPU seconds by the clock, and a minute at least."""


class Died(NamedTuple):
    """The worker is dead and another one stands ready."""

    signal: int
    """0 where it ended by itself."""


class Failed(NamedTuple):
    """The preparation raised something that is no fault of the image's."""

    error: str


class Done(NamedTuple):
    """The pixels lie in the slot, behind those of the images before."""

    shape: tuple[int, ...]
    facts: Facts


Answer = Done | Reject | Failed


def main(arguments: list[str]) -> None:
    """Keeps a worker alive for each pair until the other side has gone.

    Args:
        arguments: The slots' size in bytes, then a pair of file numbers for each worker: socket and slot.
    """
    size_bytes, *numbers = map(int, arguments)
    open_pairs = set(zip(numbers[::2], numbers[1::2], strict=True))
    workers = {_fork(pair, open_pairs, size_bytes): pair for pair in open_pairs}
    while workers:
        number, status = os.wait()
        pair = workers.pop(number)
        if status == 0:
            # With this copy the last one is closed, and whoever still writes there learns it.
            open_pairs.remove(pair)
            os.close(pair[0])
            continue
        workers[_fork(pair, open_pairs, size_bytes)] = pair
        died = Died(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
        with contextlib.suppress(
            OSError
        ):  # the other side has gone too: the new worker will see that
            _connection(pair[0]).send(died)


def _fork(pair: tuple[int, int], open_pairs: set[tuple[int, int]], size_bytes: int) -> int:
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        for socket, _ in open_pairs - {pair}:
            os.close(socket)
        with contextlib.suppress(EOFError, OSError):
            _serve(_connection(pair[0]), mmap.mmap(pair[1], size_bytes))
        code = 0
    finally:
        os._exit(code)


def _connection(socket: int) -> Connection:
    return Connection(os.dup(socket))


def _serve(connection: Connection, slot: mmap.mmap) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        pickled, images = connection.recv()
        preparation = _preparation(pickled)
        cpu_s = preparation.limits.decode_cpu_s
        answers, used_bytes = [], 0
        for data in images:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            signal.setitimer(signal.ITIMER_REAL, max(60.0, WALL_PER_CPU * cpu_s))
            answer = _answer(preparation, data, slot, used_bytes)
            answers.append(answer)
            if isinstance(answer, Done):
                used_bytes += math.prod(answer.shape)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answers)


@functools.lru_cache(maxsize=4)
def _preparation(pickled: bytes) -> Preparation:
    # From the process that started this one, and only from it.
    return pickle.loads(pickled)  # noqa: S301


def _answer(preparation: Preparation, data: bytes, slot: mmap.mmap, offset: int) -> Answer:
    try:
        pixels, facts = preparation(data)
        slot[offset : offset + pixels.nbytes] = pixels.tobytes()
        return Done(pixels.shape, facts)
    except Reject as reject:
        return reject
    except Exception:
        return Failed(traceback.format_exc(limit=-4))
