"""What the workers ask for, and whether there is room for them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transfusion.errors import ArtifactError
from transfusion.resources import TrainResources

if TYPE_CHECKING:
    from ray.train import ScalingConfig

RESIZE_INTERVAL_S = 600.0
"""How often a group may grow where its number of workers is a range: it starts again from a checkpoint for it."""


def check_room(resources: TrainResources, machine: Mapping[str, float]) -> None:
    """Whether one machine, which no other will join, can ever hold the workers.

    Raises:
        ArtifactError: It cannot.
    """
    fewest, _ = resources.worker_range
    for kind, each in (scaling(resources).resources_per_worker or {}).items():
        there = machine.get(kind, 0)
        if fewest * each > there:
            setting = "gpus_per_worker" if kind == "GPU" else "cpus_per_worker"
            raise ArtifactError(
                f"train: {fewest} workers of {each:g} {kind} each need {fewest * each:g} and this machine has "
                f"{there:g}: lower train.num_workers or train.{setting} in the profile, or submit the job to a "
                "cluster"
            )


def room(resources: TrainResources) -> str:
    """What the workers need, and what there is of it in the cluster."""
    import ray

    fewest, most = resources.worker_range
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    each = scaling(resources).resources_per_worker or {}
    try:
        free, all_there_is = ray.available_resources(), ray.cluster_resources()
    except Exception as error:
        # The display must never be what stops a run.
        return f"the cluster does not answer ({error})"
    needed = " and ".join(f"{amount:g} {kind}" for kind, amount in each.items())
    found = ", ".join(
        f"{free.get(kind, 0):g} of {all_there_is.get(kind, 0):g} {kind}" for kind in each
    )
    return f"{number} workers need {needed} each; free are {found}"


def scaling(resources: TrainResources) -> "ScalingConfig":
    """The workers that Ray Train is asked for."""
    from ray.train import ScalingConfig

    fewest, most = resources.worker_range
    use_gpu = resources.gpus_per_worker > 0
    each = {"CPU": resources.cpus_per_worker}
    if use_gpu:
        each["GPU"] = resources.gpus_per_worker
    return ScalingConfig(
        num_workers=(fewest, most) if fewest < most else most,
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        use_gpu=use_gpu,
        resources_per_worker=each,
    )
