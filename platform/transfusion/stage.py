"""A stage is a declaration and a body.

The declaration (`STAGE`, in the `__init__` of the stage's package or in a source's module) names a config
model, the kinds of artifact it takes and makes, and where the body is; it imports nothing heavy, so that a
plan is made without torch or Ray. The body is a function

    def run(config: C, inputs: Mapping[str, Artifact], context: StageContext) -> Made

What the body reads from `config` and `inputs` decides what is made. What it reads from `context` (store,
resources, logger) may not change the output; the identity does not hold it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transfusion.artifacts.canonical import fingerprint
from transfusion.config import Config
from transfusion.errors import ArtifactError
from transfusion.resources import Resources

if TYPE_CHECKING:
    from transfusion.artifacts.manifest import FileEntry, Outcomes
    from transfusion.storage.store import Store

Kind = Literal[
    "listing", "pixels", "autoencoder", "latents", "tokenizer", "tokens", "mixture", "run", "model",
    "llama", "captions", "images", "evaluation", "report",
]  # fmt: skip
"""Kinds of artifact. A new kind is a name here and a module in `artifacts/` when others read it."""

ANY_ROLE = "*"
"""As a key of `Stage.inputs`: further inputs of that kind, under names that the job chooses."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a stage takes in one role."""

    kinds: tuple[Kind, ...]
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A stage of the job that an input comes from, as the job has it: nothing of it need be made."""

    uses: str
    config: Config
    inputs: "Mapping[str, Upstream]"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The declaration of a stage."""

    config: type[Config]
    inputs: Mapping[str, Input]
    output: Kind
    body: str
    """`module:function` of the body."""
    version: int
    """Raised whenever the code changes what is written."""
    raw: str | None = None
    """`module:function` that lists raw input at plan time: `(config) -> list of plain JSON`, its identity; None
    where a config takes no raw input."""
    check: str | None = None
    """`module:function` for faults that types do not show: `(config, roles) -> list of messages`."""
    fits: str | None = None
    """`module:function` for faults between the config and what comes before, which would else be met hours later:
    `(config, inputs: Mapping[str, Upstream]) -> list of messages`."""
    needs_ray: bool = True
    summary: str = ""
    """One line for `--help` and the report."""


@dataclass(kw_only=True)
class Made:
    """What a body hands back; the runner commits it."""

    files: "Sequence[FileEntry]"
    outcomes: "Outcomes | None" = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    """Durations and rates: recorded, outside the digest."""


@dataclass(kw_only=True)
class StageContext:
    """What a body is handed that may not change its output."""

    name: str
    """The stage's name in the job, for messages."""
    uses: str
    version: int
    fingerprint: str
    store: "Store"
    resources: Resources
    scratch: Path
    """A local folder of this attempt, removed afterwards."""
    log: logging.Logger
    raw: str | None = None
    """Fingerprint of the raw input that was planned with; a body that looks again must find the same."""
    progress: Callable[..., "Progress"]
    """`context.progress(total=, unit=)`; a context manager with `advance(n, **shown)`."""
    start_ray: Callable[[], None] = lambda: None
    """Connects to Ray or starts it, once: for a body whose stage does not need Ray, but that may want it. Without
    a runner nothing does, as in tests that have started it."""

    @property
    def folder(self) -> str:
        """The artifact's folder in the store."""
        return f"{self.uses}/{self.fingerprint[:16]}"

    @property
    def pool(self) -> str:
        """The folder of the stage's shard pool in the store."""
        return f"{self.uses}/pool"

    def check_raw(self, listed: Any, *, what: str) -> None:
        """That raw input, listed again, is what the job was planned with: the artifact's name says it is.

        Raises:
            ArtifactError: `what`, which names the input, has changed.
        """
        if None not in (self.raw, listed) and self.raw != fingerprint(listed):
            raise ArtifactError(
                f"{self.name}: {what} changed since the job was planned; run it again"
            )


class Progress:
    """Counts work and says every so often how far it is: a line of the log, with rate and time left.

    The runner's terminal display derives from this; without a terminal this is what there is.
    """

    def __init__(
        self, log: logging.Logger, *, total: int, unit: str, every_s: float = 10.0
    ) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self._log, self._every_s = log, every_s
        self._started = self._told = time.monotonic()
        self._first = 0
        self._shown: Mapping[str, Any] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()

    @property
    def rate(self) -> float:
        """Of work that was done since the start, a second; 0 before there is any."""
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)

    @property
    def left(self) -> str:
        """The time that the rest takes at this rate, for people."""
        return duration((self.total - self.done) / self.rate) if self.rate > 0 else "?"

    def start_at(self, done: int) -> None:
        """Work begins now, with so much done: neither that nor the time before is in the rate."""
        self.done = self._first = done
        self._started = time.monotonic()

    def advance(self, count: int = 1, **shown: Any) -> None:
        """Adds finished work; `shown` is printed beside the count."""
        self.done += count
        self._shown = shown
        if self.done < self.total and time.monotonic() - self._told >= self._every_s:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        extra = "".join(f"  {key} {value}" for key, value in self._shown.items())
        ahead = "" if self.done >= self.total else f", {self.left} left"
        told = f"{self.done:,}/{self.total:,} {self.unit}  {self.rate:,.4g}/s{ahead}{extra}"
        self._log.info(told)


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`; `?` when it cannot be told."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
