"""A profile: the resources of a job, and the machines they come from. Never part of an identity.

`Resources` is what stages see; what a cluster looks like (images, groups of machines, deadlines) is
only needed where cluster files are rendered, and stays in this room.
"""

import importlib.metadata
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from transfusion.config import Config, read_yaml, validate
from transfusion.errors import SpecError
from transfusion.resources import Resources

Target = Literal["rayjob", "rayservice", "ray-up"]


class DriverResources(Config):
    """What the process that walks the plan reserves: export, evaluation and the report run in it."""

    cpus: float = Field(0, ge=0)
    """0 runs it on the head, which is right for a single machine and wrong for a large job."""
    gpus: float = Field(0, ge=0)


class MachineGroup(Config):
    """Machines (or pods) of one shape; the autoscaler keeps between `min` and `max` of them."""

    cpus: int = Field(8, ge=1)
    memory_gib: int = Field(32, ge=1)
    gpus: int = Field(0, ge=0)
    min: int = Field(0, ge=0)
    max: int = Field(4, ge=0)
    node_selector: dict[str, str] = {}
    """Kubernetes: labels a node must carry."""
    launch: dict[str, Any] = {"InstanceType": "m6i.2xlarge"}
    """`ray up`: the provider's own description of the machine, passed through."""


class HeadMachine(Config):
    """Where Ray's own services run. It takes no work: its loss is the loss of the cluster."""

    cpus: int = Field(4, ge=1)
    memory_gib: int = Field(16, ge=1)
    launch: dict[str, Any] = {"InstanceType": "m6i.xlarge"}


class Kubernetes(Config):
    """What only RayJob and RayService need."""

    namespace: str | None = None
    """None leaves it to `kubectl apply --namespace`."""
    service_account: str | None = None
    """A service account with access to the bucket makes `store_secret` unnecessary."""
    image_pull_secret: str | None = None
    store_secret: str | None = "transfusion-store"  # noqa: S105
    """A Secret whose keys become environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ..."""
    endpoint_secret: str | None = "transfusion-endpoint"  # noqa: S105
    """A Secret with TRANSFUSION_API_KEYS: Ray's token does not guard the endpoint."""
    queue: str | None = None
    """A Kueue queue; the job then starts suspended, and Kueue admits it."""
    retries: int = Field(2, ge=0)
    """Each retry is a new cluster that goes on from what is in the store."""
    deadline_s: int = Field(7 * 24 * 3600, ge=1)
    startup_deadline_s: int = Field(3600, ge=1)
    """How long the cluster may wait for machines before the job counts as failed."""
    keep_s: int = Field(600, ge=0)
    """How long the cluster stays after the job ended, for a look at its logs."""
    user_id: int = Field(1000, ge=1)
    """The user that everything runs as; never root."""


class RayUp(Config):
    """What only `ray up` needs."""

    provider: dict[str, Any] = {"type": "aws", "region": "us-west-2"}
    """The provider block, passed through. It takes machine identities, never keys."""
    ssh_user: str = "ubuntu"
    idle_timeout_minutes: int = Field(10, ge=1)
    run_options: tuple[str, ...] = ("--ulimit nofile=65536:65536", "--shm-size=16g")


class Cluster(Config):
    """The machines of a profile."""

    image: str = "transfusion:latest"
    """Built from `cluster/Dockerfile`; pin it by digest (`name@sha256:...`) once it is pushed."""
    head: HeadMachine = HeadMachine()
    cpu: MachineGroup = MachineGroup()
    gpu: MachineGroup | None = None
    kubernetes: Kubernetes = Kubernetes()
    ray_up: RayUp = RayUp()

    @property
    def groups(self) -> dict[str, MachineGroup]:
        """The groups that take work, by name."""
        return {"cpu": self.cpu} | ({"gpu": self.gpu} if self.gpu else {})


class Rates(Config):
    """What one accelerator was measured to do, and what it costs: `plan` estimates from it. None is not known.

    An accelerator is what one worker or actor has: a GPU, or its CPUs where there is none.
    """

    images_per_second: float | None = Field(None, gt=0)
    """Encoded to latents: as the encoding stage reported it, divided by its actors."""
    train_positions_per_second: float | None = Field(None, gt=0)
    """Positions of packed sequences, padding included, that training takes in: of one model."""
    train_tflops_per_second: float | None = Field(None, gt=0)
    """Model TFLOP/s that training reaches, a run's `mfu` times the peak: for models of any size, where positions a
    second are not given."""
    price_per_hour: float | None = Field(None, ge=0)
    """Of one accelerator, in dollars."""


class Profile(Resources):
    """A file of `cluster/`."""

    rates: Rates = Rates()
    driver: DriverResources = DriverResources()
    cluster: Cluster = Cluster()


def read_profile(path: Path | None) -> Profile:
    """Reads a profile; None gives the defaults, which suit a laptop. Raises SpecError with all faults."""
    if path is None:
        return Profile()
    profile, faults = validate(Profile, read_yaml(path), where=f"{path}: ")
    if profile is None:
        raise SpecError([fault.replace(": .", ": ", 1) for fault in faults])
    return profile


def as_profile(resources: Resources) -> Profile:
    """The resources as a profile: itself, or with default machines."""
    if isinstance(resources, Profile):
        return resources
    return Profile.model_validate(dict(resources))


class _Demand(NamedTuple):
    """Workers of one kind: how many, and what each takes."""

    where: str
    workers: int
    cpus: float
    gpus: float


def misfits(profile: Profile, target: Target) -> list[str]:
    """Every demand of the profile that its machines cannot meet: such a job would wait for ever."""
    faults = [
        fault
        for demand in _demands(profile, target)
        for fault in _misfits_of(demand, profile.cluster)
    ]
    for name, group in profile.cluster.groups.items():
        if group.min > group.max:
            faults.append(
                f"cluster.{name}: min must not be above max, got {group.min} and {group.max}"
            )
    if profile.cluster.gpu is not None and profile.cluster.gpu.gpus == 0:
        faults.append(
            "cluster.gpu.gpus: must be 1 or more in the GPU group, got 0; or leave the group out"
        )
    return faults


def _demands(profile: Profile, target: Target) -> list[_Demand]:
    train, pool, serve, driver = profile.train, profile.pool, profile.serve, profile.driver
    if target == "rayservice":
        return [
            _Demand("serve", serve.max_replicas, serve.cpus_per_replica, serve.gpus_per_replica)
        ]
    return [
        _Demand("train", train.worker_range[0], train.cpus_per_worker, train.gpus_per_worker),
        _Demand("pool", pool.num_actors, pool.cpus_per_actor, pool.gpus_per_actor),
        _Demand("driver", 1, driver.cpus, driver.gpus),
    ]


def _misfits_of(demand: _Demand, cluster: Cluster) -> list[str]:
    wants = f"{demand.where}: {demand.workers} x {demand.cpus:g} CPUs and {demand.gpus:g} GPUs"
    groups = [group for group in cluster.groups.values() if group.gpus or not demand.gpus]
    if not groups:
        return [f"{wants}, but cluster.gpu is missing; add the group, or ask for 0 GPUs"]
    room = sum(_workers_per_machine(demand, group) * group.max for group in groups)
    if room >= demand.workers:
        return []
    return [
        f"{wants}, but the machines under cluster hold {room} of these at most; "
        f"raise their max or size, or lower the demand"
    ]


def _workers_per_machine(demand: _Demand, group: MachineGroup) -> int:
    by_cpu = group.cpus / demand.cpus if demand.cpus else math.inf
    by_gpu = group.gpus / demand.gpus if demand.gpus else math.inf
    fit = min(by_cpu, by_gpu)
    return demand.workers if math.isinf(fit) else math.floor(fit)


def ray_version() -> str:
    """The Ray that this platform runs on; client, image and cluster must agree on it."""
    return importlib.metadata.version("ray")
