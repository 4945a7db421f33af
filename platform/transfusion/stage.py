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

from pydantic import Field, model_validator

from transfusion.artifacts.canonical import fingerprint
from transfusion.config import Config
from transfusion.errors import ArtifactError

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
    needs_ray: bool = True
    summary: str = ""
    """One line for `--help` and the report."""


class TrainResources(Config):
    """Workers of a training stage."""

    num_workers: int = Field(2, ge=1)
    min_workers: int | None = Field(None, ge=1)
    """None for a fixed group. With fewer than `num_workers` the group starts with what the cluster has, goes on
    smaller after the loss of a machine, and grows again from a checkpoint. Ray counts whole machines: where the
    driver takes GPUs of a worker's machine, it may wait for a worker more than fit."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0)
    """Restarts after a worker's death before the stage fails; preemptions are not counted."""
    hang_timeout_s: float = Field(900, gt=0)
    """A worker whose step, validation or checkpoint takes longer writes the stacks of its threads and exits, and
    the group starts again."""
    collective_timeout_s: int = Field(1800, ge=1)
    """A message between workers that takes longer ends the worker that waits. More than `hang_timeout_s`, or the
    group would be gone before anybody has written stacks."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What blocks of the transformer compute anew on the way back rather than keep: nothing; all but products with
    weights and attention; all but their inputs. Gradients are the same."""
    shard_group_size: int | None = Field(None, ge=1)
    """Workers that share one copy of weights and optimizer, such as those of a machine; groups hold copies and
    exchange gradients only. All workers share one when left out, and in a range of workers while their number
    is no multiple of it."""
    peak_tflops: float | None = Field(None, gt=0)
    """Of a worker's device in dense bf16 products, for the model FLOPs' utilisation; known of common GPUs."""
    checkpoint_async: bool = False
    """Checkpoints are written from a copy in host memory while training goes on: takes as much memory as they
    do, and a worker's death costs one more."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers that a group may have."""
        return self.min_workers or self.num_workers, self.num_workers

    def shard_group_for(self, workers: int) -> int | None:
        """The size of a group among so many workers; None for all in one."""
        size, (fewest, most) = self.shard_group_size, self.worker_range
        uneven = size is not None and workers % size != 0
        return None if fewest < most and uneven else size

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> "TrainResources":
        fewest, most = self.worker_range
        if fewest > most:
            raise ValueError(
                f"min_workers must be at most num_workers, got {fewest} and {most}: lower it, raise num_workers, "
                "or leave it out for a fixed number"
            )
        if self.collective_timeout_s <= self.hang_timeout_s:
            raise ValueError(
                f"collective_timeout_s must be more than hang_timeout_s, got {self.collective_timeout_s} and "
                f"{self.hang_timeout_s:g}: a message that is given up first leaves no stacks; raise the one or "
                "lower the other"
            )
        size = self.shard_group_size
        if fewest < most and size is not None and (fewest % size or most % size):
            raise ValueError(
                f"shard_group_size must divide both ends of a range of workers, got {size} for {fewest} to "
                f"{most}: set min_workers and num_workers to multiples of it, or leave it out"
            )
        return self


class PoolResources(Config):
    """The pool of actors of a data stage, and when a run of it stops."""

    num_actors: int = Field(2, ge=1)
    max_actors: int | None = Field(None, ge=1)
    """None for a fixed pool. With more than `num_actors` the pool grows with the cluster; a pool of GPU actors is
    better fixed, since Ray does not ask an autoscaler for the GPUs it lacks (ray-project/ray#59144)."""
    cpus_per_actor: float = Field(1, gt=0)
    gpus_per_actor: float = Field(0, ge=0)
    memory_per_actor_gib: float | None = Field(None, gt=0)
    decoding: Literal["fused", "split"] = "fused"
    """Where images are decoded: in the encoder's actor, or in another, which may be on another machine."""
    decode_cpus: float = Field(4, gt=0)
    """Of the actor that decodes for an encoder when they are split."""
    compile_encoder: bool = False
    """`torch.compile` the encoder on CUDA: minutes at the start, for long runs."""
    max_reject_fraction: float = Field(0.5, ge=0, le=1)
    """A run stops when more of at least 1,000 rows were rejected."""


class MixResources(Config):
    """How a mixture is planned."""

    reading: Literal["auto", "threads", "ray"] = "auto"
    """Of the index tables: in threads of the planning process, or as a Ray Data job; auto chooses by the number
    of shards. The plan is the same."""


ServeProxy = Literal["ray", "haproxy"]


class ServeResources(Config):
    """Replicas of the sampler behind an endpoint."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    cpus_per_replica: float = Field(1, gt=0)
    gpus_per_replica: float = Field(0, ge=0)
    upscale_delay_s: float = Field(10, ge=0)
    """Load must ask for more replicas for so long before they come."""
    downscale_delay_s: float = Field(300, ge=0)
    """Load must ask for fewer for so long before they go."""
    look_back_period_s: float = Field(30, gt=0)
    """Load is a mean over this time."""
    proxy: ServeProxy = "ray"
    """What stands before the replicas of a node: Ray Serve's own proxy, in Python, or HAProxy, which it comes with
    and which costs overloaded cores far less. HAProxy shows pages of its own at ports 8404 and 9101 of every
    interface: for machines behind a firewall or network policy."""


class Resources(Config):
    """Where and how a job runs: a profile in `cluster/`. Never part of an identity."""

    num_cpus: int | None = Field(None, ge=1)
    """CPUs of a Ray started here; None for all of the machine's."""
    train: TrainResources = TrainResources()
    pool: PoolResources = PoolResources()
    mix: MixResources = MixResources()
    serve: ServeResources = ServeResources()
    tracking: Literal["none", "wandb", "tensorboard"] = "none"
    """wandb runs offline when no key is set; tensorboard needs its package."""


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

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._tell({})

    @property
    def elapsed_s(self) -> float:
        """Seconds since this progress began."""
        return time.monotonic() - self._started

    def start_at(self, done: int) -> None:
        """Work that was there before: shown as done, not counted in the rate."""
        self.done = self._first = done

    def advance(self, count: int = 1, **shown: Any) -> None:
        """Adds finished work; `shown` is printed beside the count."""
        self.done += count
        if time.monotonic() - self._told >= self._every_s:
            self._tell(shown)

    def _tell(self, shown: Mapping[str, Any]) -> None:
        self._told = time.monotonic()
        elapsed = max(self._told - self._started, 1e-9)
        rate = (self.done - self._first) / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        extra = "".join(f"  {key} {value}" for key, value in shown.items())
        ahead = "" if self.done >= self.total else f", {duration(left)} left"
        self._log.info(f"{self.done:,}/{self.total:,} {self.unit}  {rate:,.4g}/s{ahead}{extra}")


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
