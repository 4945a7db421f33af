"""What a replica and its engine's process say to each other, and how it is written."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transfusion.package.format import Weights
from transfusion.package.load import Precision
from transfusion.sample.events import Event
from transfusion.sample.rows import Request
from transfusion.serve.loop import Step


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """What the engine's process is told at its start."""

    folder: Path
    """A package's."""
    weights: Weights
    device: str
    precision: Precision
    max_rows: int
    threads: int
    """CPU threads of a step."""
    is_compiled: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine can be asked."""

    warm_up_s: float
    """Of its start."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be loaded."""

    message: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Requests, those with one prompt object as such."""

    ticket: int
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gives up what has not ended of a ticket."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """After a step, and before a sleep with no step."""

    told: Sequence[tuple[int, int, Event]]
    """(ticket, number of the request, what came of it)"""
    step: Step | None


def send(connection: Connection, message: Any) -> None:
    """Writes a message; tensors go by value, whatever they are a view of."""
    content = io.BytesIO()
    _Pickler(content, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    connection.send_bytes(content.getbuffer())


def receive(connection: Connection) -> Any:
    """The next message of the other end, which is ours; raises EOFError where there is none any more."""
    return pickle.loads(connection.recv_bytes())  # noqa: S301 a pair of sockets, both ends ours


class _Pickler(pickle.Pickler):
    """torch's own way shares memory between processes, or copies all that a view was cut from."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        return _tensor, (value.detach().cpu().numpy(),)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values)
