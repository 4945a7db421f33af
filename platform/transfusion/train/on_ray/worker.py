"""Ray Train around the loop: the driver's side (`train_on_ray`) and the worker's side.

Ray Train brings up the processes, their process group and restarts after a death. It is not asked to keep
checkpoints: its snapshot is bound to a Ray version and to one name, so each attempt gets a fresh name in a
temporary folder, and the run's own checkpoint records decide where to go on.
"""

import importlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry
from transfusion.errors import ArtifactError, TransfusionError
from transfusion.resources import TrainResources
from transfusion.stage import Made, StageContext
from transfusion.train.lease import lease
from transfusion.train.on_ray.room import check_room, room, scaling
from transfusion.train.on_ray.status import Teller, follow

logger = logging.getLogger("transfusion")

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # the end of a run is seen by polling, 2 s by default
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Train's own knobs; what the environment sets already stands."""

START_TIMEOUT_S = {"fixed": 300, "range": 60}
"""How long a group waits for its machines before Ray Train counts them again. A fixed one may have to wait until
they are started; a range is sized by those of some seconds ago, and one just lost may be among them."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What the workers are sent: plain values only."""

    build: str
    """`module:function` of `(config, inputs, device, resources) -> Trainee`."""
    config: dict[str, Any]
    inputs: dict[str, str]
    """Manifest path of each input, by role."""
    store: str
    folder: str
    fingerprint: str
    name: str
    scratch: str
    tracking: str
    resources: dict[str, Any]
    use_gpu: bool
    watched: bool
    """Whether Ray Train tells its workers of a machine that will be taken away."""
    status_key: str


def train_on_ray(
    build: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    steps: int,
    lanes: int,
) -> Made:
    """Runs a training job on the Ray that is up, resuming it if it was begun before.

    Args:
        lanes: Micro-batches of a global batch, of which a worker needs one at least.

    Raises:
        TransfusionError: A mistake that a person can mend, from any worker.
    """
    workers = context.resources.train.num_workers
    if workers > lanes:
        raise ArtifactError(
            f"{context.name}: {workers} workers for {lanes} lanes: the rest would idle; set train.num_workers in "
            f"the profile to at most {lanes}, or raise the lanes of what is trained on"
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    resources = context.resources.train
    fewest, most = resources.worker_range
    timeout_s = START_TIMEOUT_S["range" if fewest < most else "fixed"]
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout_s))
    import ray.train

    from transfusion.train.on_ray.process_group import InterruptibleTrainer, StoppableTorch

    nodes = ray.nodes()
    if len(nodes) == 1 and not os.environ.get("RAY_ADDRESS"):
        check_room(resources, nodes[0]["Resources"])
    if len(nodes) == 1 and nodes[0]["Resources"].get("CPU"):
        # One node that works itself is not drained under us; the watcher would be one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    use_gpu = resources.gpus_per_worker > 0
    job = TrainJob(
        build=build,
        config=dict(config),
        inputs={role: f"{artifact.path}/manifest.json" for role, artifact in inputs.items()},
        store=context.store.uri,
        folder=context.folder,
        fingerprint=context.fingerprint,
        name=context.name,
        scratch=str(context.scratch),
        tracking=context.resources.tracking,
        resources=resources.resolved(),
        use_gpu=use_gpu,
        watched=os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0",
        status_key=f"transfusion.train/{uuid.uuid4().hex}",
    )
    storage = tempfile.mkdtemp(prefix="ray-train-")
    trainer = InterruptibleTrainer(
        train_worker,
        train_loop_config=asdict(job),
        torch_config=StoppableTorch(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=resources.collective_timeout_s,
        ),
        scaling_config=scaling(resources),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with (
            lease(context.store, context.folder, log=context.log),
            follow(
                job.status_key, context, steps=steps, workers=most, room=lambda: room(resources)
            ),
        ):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _told(error) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    returned = result.return_value
    if "fault" in returned:
        raise ArtifactError(returned["fault"])
    return Made(
        files=[FileEntry.model_validate(file) for file in returned["files"]],
        metadata=returned["metadata"],
        metrics=returned["metrics"],
        timings=returned["timings"],
    )


def train_worker(values: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every rank. Returns the result, or the fault that all ranks agree on."""
    job = TrainJob(**values)
    import torch
    import torch.distributed as dist

    from transfusion.artifacts.artifact import open_artifact
    from transfusion.storage.store import open_store
    from transfusion.train import stop
    from transfusion.train.checkpoints.record import OtherFormatError
    from transfusion.train.faults import NotFiniteError, SpikeError
    from transfusion.train.finish import run_to_end

    device = torch.device("cpu")
    if job.use_gpu:
        import ray.train.torch

        device = ray.train.torch.get_device()
    store = open_store(job.store)
    teller = Teller(job.status_key, rank=dist.get_rank())
    logger.addHandler(teller)
    logger.setLevel(logging.INFO)
    try:
        trainee, fault = None, ""
        try:
            module, _, function = job.build.partition(":")
            inputs = {role: open_artifact(store, path) for role, path in job.inputs.items()}
            resources = TrainResources.model_validate(job.resources)
            if dist.get_rank() == 0 and resources.worker_range[0] < resources.num_workers:
                logger.info(
                    "%d of at most %d workers", dist.get_world_size(), resources.num_workers
                )
            builder = getattr(importlib.import_module(module), function)
            trainee = builder(job.config, inputs, device, resources)
        except TransfusionError as error:
            fault = str(error)
        # A fault of one rank is everyone's: the others must not wait for it in a collective.
        faults: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(faults, fault)
        if trainee is None or any(faults):
            return {"fault": next(told for told in faults if told)}
        outcome = run_to_end(
            trainee,
            store=store,
            folder=job.folder,
            fingerprint=job.fingerprint,
            name=job.name,
            scratch=Path(job.scratch),
            tracking=job.tracking,
            tell=teller.tell,
            resources=resources,
            stop=stop.asked,
            save=preemption() if job.watched else lambda: False,
        )
    except (NotFiniteError, SpikeError, OtherFormatError) as error:
        # Every rank raises it at the same step, and a restart would come to the same step. Not so of one that was
        # asked to stop: its machine goes, and the group starts again on what is left.
        return {"fault": str(error)}
    finally:
        logger.removeHandler(teller)
        teller.publish()
    # Without it the first rank to leave tears the group down under the others' last messages.
    dist.barrier()
    return outcome


def preemption() -> Callable[[], bool]:
    """Whether Ray has said, since it was last asked, that another machine of the group will be taken away.

    Every rank has to ask as often as the others, and gets rank 0's answer. Training goes on until the machine is
    gone; Ray Train then starts the group again, which goes on from that checkpoint.
    """
    import ray.train

    told: set[str] = set()

    def noticed() -> bool:
        info = ray.train.get_preemption_info()
        new = set(info.preempted_node_ids) - told if info else set()
        told.update(new)
        if new:
            logger.warning(
                "%d machines are about to be taken away: a checkpoint is written", len(new)
            )
        return bool(new)

    return noticed


def _told(error: Exception) -> Exception:
    """The mistake behind a failed run, or the failure itself."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, TransfusionError):
            return cause
    return error
