"""What ranks agree on by asking the first of them."""

import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from transfusion.errors import ArtifactError
from transfusion.train.record import OtherFormatError

Answer = TypeVar("Answer")


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


def new_attempt() -> str:
    """An id that no other attempt has, the same on every rank."""
    return agreed(lambda: uuid.uuid4().hex[:12])
