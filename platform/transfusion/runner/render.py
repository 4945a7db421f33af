"""Cluster files for a job: a KubeRay RayJob or RayService, or a `ray up` file. Contacts no cluster.

    transfusion render jobs/x.yaml --profile cluster/gpu-cluster.yaml | kubectl apply -f -

Each file is one YAML document that carries the resolved job, so that what was reviewed is what runs.
"""

import tempfile
import textwrap
from typing import Any, get_args

import yaml

from transfusion.artifacts.manifest import artifact_path
from transfusion.config import suggestion
from transfusion.errors import SpecError
from transfusion.resources import Resources
from transfusion.runner.profile import Profile, Target, as_profile, misfits
from transfusion.runner.render_kubernetes import ray_job, ray_service
from transfusion.runner.render_ray_up import ray_up
from transfusion.runner.shipping import ShippedJob, ship
from transfusion.spec.job import Job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store


def render(job: Job, *, target: str, resources: Resources, until: str | None = None) -> str:
    """The cluster file for a job as YAML, headed by how to use it and what to look at first.

    Raises:
        SpecError: The target is unknown, the machines cannot hold what the job asks for, the job has no
            endpoint to serve, or its raw input is missing, so that the model cannot be pinned.
    """
    targets = get_args(Target)
    if target not in targets:
        raise SpecError(
            f"--target: must be one of {', '.join(targets)}, got {target!r}{suggestion(target, targets)}"
        )
    profile = as_profile(resources)
    faults = misfits(profile, target)  # type: ignore[arg-type]  # checked above
    if faults:
        raise SpecError(faults)
    shipped = ship(job, until=until)
    if target == "rayjob":
        document = ray_job(shipped, profile, until=until)
        use = "kubectl apply -f -     then: kubectl get rayjob --watch"
    elif target == "rayservice":
        document = ray_service(shipped, profile, model=_model_place(job, shipped))
        use = "kubectl apply -f -     then: kubectl get rayservice --watch"
    else:
        document = ray_up(shipped, profile)
        use = "ray up FILE     then: ray dashboard FILE, and transfusion submit JOB"
    return _header(shipped, profile, target=target, use=use) + to_yaml(document)


def _model_place(job: Job, shipped: ShippedJob) -> str:
    """The address of the model package that the endpoint serves, pinned by its fingerprint."""
    if job.file.endpoint is None:
        raise SpecError(
            "endpoint: this block is missing, so there is nothing to serve; "
            "add `endpoint: {model: STAGE}` with the stage that makes the model package"
        )
    name = job.file.endpoint.model
    known = [stage.name for stage in job.stages]
    if name not in known:
        raise SpecError(f"endpoint.model: there is no stage {name!r}{suggestion(name, known)}")
    # Identity needs no store; an empty one keeps the plan from contacting the job's.
    with tempfile.TemporaryDirectory() as empty:
        planned = plan_job(job, open_store(empty), until=name)[-1]
    store = str(shipped.values["store"]).rstrip("/")
    return f"{store}/{artifact_path(planned.stage.uses, planned.fingerprint)}"


def _header(shipped: ShippedJob, profile: Profile, *, target: str, use: str) -> str:
    lines = [f"Job {shipped.name}, fingerprint {shipped.fingerprint[:16]}, as {target}.", use]
    if "@sha256:" not in profile.cluster.image:
        lines.append(
            f"LOOK: the image {profile.cluster.image} is not pinned by digest; another push of that tag "
            "would change what runs. Set cluster.image in the profile to name@sha256:..."
        )
    if target != "ray-up" and shipped.local_places:
        lines.append(
            "LOOK: these lie on a local disk, and pods share none; give s3://bucket/prefix, or mount a "
            "shared volume there: " + "; ".join(shipped.local_places)
        )
    wrapped = [line for text in lines for line in textwrap.wrap(text, 96, break_on_hyphens=False)]
    return "".join(f"# {line}\n" for line in wrapped)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a carried job file reads as one."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]  # a reader edits one place at a time


def to_yaml(document: dict[str, Any]) -> str:
    """A YAML document in the order it was built."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
