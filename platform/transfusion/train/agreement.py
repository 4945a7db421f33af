"""What ranks agree on by asking the first of them."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch.distributed as dist

from transfusion.errors import ArtifactError
from transfusion.train.checkpoints.record import OtherFormatError

Answer = TypeVar("Answer")

WAIT_S = 5.0
"""Between two messages of those who wait."""


def agreed(ask: Callable[[], Answer]) -> Answer:
    """What rank 0 answers, on every rank; also the error of the store that it raises, as an ArtifactError."""
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = [(ask(), None)]
        except (ArtifactError, OSError) as error:
            # Of a class that every rank can make: not each error's can be.
            kind = OtherFormatError if isinstance(error, OtherFormatError) else ArtifactError
            found = [(None, kind(str(error)))]
    dist.broadcast_object_list(found, src=0)
    answer, raised = found[0]
    if raised is not None:
        raise raised
    result: Answer = answer
    return result


def first_alone(work: Callable[[], Answer]) -> Answer | None:
    """What rank 0 makes, on rank 0, which may take any time; None on the others, which wait for it.

    They wait in short messages: a single one would be given up after `collective_timeout_s`, and the upload of a
    large model takes longer. An error of rank 0 is raised on every rank, as by `agreed`.
    """
    if dist.get_rank() != 0:
        while not agreed(bool):  # asked of rank 0 only
            pass
        return None
    with ThreadPoolExecutor(1, thread_name_prefix="rank-0") as thread:
        making = thread.submit(work)

        def is_over() -> bool:
            wait([making], timeout=WAIT_S)
            if not making.done():
                return False
            making.result()
            return True

        while not agreed(is_over):
            pass
        return making.result()


def new_attempt() -> str:
    """An id that no other attempt has, the same on every rank."""
    return agreed(lambda: uuid.uuid4().hex[:12])
