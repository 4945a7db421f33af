"""Where and how a job runs: workers, actors, replicas. Set by a profile in `cluster/`; no identity holds them."""

from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Config


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
    gathered_for: Literal["layer", "step"] = "layer"
    """How long a worker holds weights that it gathered: while a layer computes, there and back; or from the first
    micro-batch of a step to its last, which takes 2 bytes a weight in bf16 and gathers them once for all lanes."""
    peak_tflops: float | None = Field(None, gt=0)
    """Of a worker's device in dense bf16 products, for the model FLOPs' utilisation; known of common GPUs."""
    data_cache_gib: float = Field(1, gt=0)
    """What a worker keeps of the shards in memory, and half as much again for batches that wait. Each of its lanes
    comes back to its shuffle window, 0.25 GiB of 8 x 32 x 32 latents by default: with less than these take they
    are read over and over, which the log then says."""
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
    """A profile."""

    num_cpus: int | None = Field(None, ge=1)
    """CPUs of a Ray started here; None for all of the machine's."""
    train: TrainResources = TrainResources()
    pool: PoolResources = PoolResources()
    mix: MixResources = MixResources()
    serve: ServeResources = ServeResources()
    tracking: Literal["none", "wandb", "tensorboard"] = "none"
    """wandb runs offline when no key is set; tensorboard needs its package."""
