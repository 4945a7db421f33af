"""RayJob and RayService for KubeRay 1.6 or newer.

The job file travels as an annotation of the pods and appears in them as a file (downward API): one
document to review, nothing to mount beforehand, and no shell or `$(...)` expansion on the way.
"""

import shlex
from typing import Any

import yaml

from transfusion.errors import SpecError
from transfusion.runner.cluster import serving_environment
from transfusion.runner.profile import MachineGroup, Profile, ray_version
from transfusion.runner.shipping import ShippedJob, resources_yaml

JOB_FOLDER = "/etc/transfusion"
HOME = "/home/transfusion"
"""The home folder of the image; the only places that can be written are this, /tmp and /dev/shm."""

GRACE_S = 300
"""Between SIGTERM to a pod and its end; Kubernetes gives 30 s, in which a large model is not written."""

MAX_JOB_BYTES = 200_000
"""Kubernetes allows 256 KiB of annotations on an object."""


def ray_job(job: ShippedJob, profile: Profile, *, until: str | None) -> dict[str, Any]:
    """A RayJob: a cluster that comes, runs the job once to its end, and goes."""
    kubernetes = profile.cluster.kubernetes
    files = {"job.yaml": job.yaml, "profile.yaml": resources_yaml(profile)}
    size = sum(len(text.encode()) for text in files.values())
    if size > MAX_JOB_BYTES:
        raise SpecError(
            f"the resolved job is {size:,} bytes, and a RayJob carries {MAX_JOB_BYTES:,} at most; "
            "use transfusion submit on a running cluster"
        )
    metadata = _metadata(job.key, job, profile)
    spec: dict[str, Any] = {
        "entrypoint": f"python -m transfusion.cli run {JOB_FOLDER}/job.yaml"
        f" --profile {JOB_FOLDER}/profile.yaml"
        + (f" --until {shlex.quote(until)}" if until else ""),
        "entrypointNumCpus": profile.driver.cpus,
        "entrypointNumGpus": profile.driver.gpus,
        # The operator submits over HTTP: no submitter pod that can be evicted or whose log tail can hang.
        "submissionMode": "HTTPMode",
        "backoffLimit": kubernetes.retries,
        "activeDeadlineSeconds": kubernetes.deadline_s,
        "preRunningDeadlineSeconds": kubernetes.startup_deadline_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.keep_s,
        "rayClusterSpec": _cluster(job, profile, files=files, secrets=[kubernetes.store_secret]),
    }
    if kubernetes.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = kubernetes.queue
        spec["suspend"] = True
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def ray_service(job: ShippedJob, profile: Profile, *, model: str) -> dict[str, Any]:
    """A RayService: the endpoint, kept up. Its name stays over models, so that a new one is an upgrade."""
    kubernetes = profile.cluster.kubernetes
    endpoint = {
        key: value
        for key, value in dict(job.values["endpoint"]).items()
        # Inside a pod the endpoint listens for its Service; where people reach it is the Service's matter.
        if key not in {"model", "host", "port"}
    }
    application = {
        "name": "transfusion",
        "route_prefix": "/",
        "import_path": "transfusion.serve.app:build_app",
        "args": {
            "endpoint": endpoint,
            "resources": profile.serve.model_dump(mode="json"),
        },
        # Not among the arguments: a new model is loaded by replicas that go on serving the old one meanwhile.
        "deployments": [{"name": "Sampler", "user_config": {"model": model}}],
    }
    serve_config = {
        "http_options": {"host": "0.0.0.0", "port": 8000},  # noqa: S104  # inside the pod
        "applications": [application],
    }
    secrets = [kubernetes.store_secret, kubernetes.endpoint_secret]
    spec = {
        "upgradeStrategy": {"type": "NewCluster"},
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": yaml.safe_dump(serve_config, sort_keys=False),
        "rayClusterConfig": _cluster(
            job,
            profile,
            files={},
            secrets=secrets,
            environment=serving_environment(profile.serve.proxy),
        ),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(job.name, job, profile),
        "spec": spec,
    }


def _metadata(name: str, job: ShippedJob, profile: Profile) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {
            "app.kubernetes.io/name": "transfusion",
            "app.kubernetes.io/instance": job.name,
            "transfusion/fingerprint": job.fingerprint[:16],
        },
    }
    if profile.cluster.kubernetes.namespace:
        metadata["namespace"] = profile.cluster.kubernetes.namespace
    return metadata


def _cluster(
    job: ShippedJob,
    profile: Profile,
    *,
    files: dict[str, str],
    secrets: list[str | None],
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    cluster = profile.cluster
    shared: dict[str, Any] = {
        "files": files,
        "secrets": [name for name in secrets if name],
        "environment": environment or {},
    }
    head = MachineGroup(cpus=cluster.head.cpus, memory_gib=cluster.head.memory_gib)
    return {
        "rayVersion": ray_version(),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "securityContext": _container_security(),
            "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],  # noqa: S108
            "resources": {
                "requests": {"cpu": "500m", "memory": "512Mi"},
                "limits": {"cpu": "1", "memory": "1Gi"},
            },
        },
        "headGroupSpec": {
            # ClusterIP: the dashboard is reached by `kubectl port-forward`, never from outside.
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": _pod("ray-head", head, job, profile, **shared),
        },
        "workerGroupSpecs": [
            {
                "groupName": name,
                "replicas": group.min,
                "minReplicas": group.min,
                "maxReplicas": group.max,
                "rayStartParams": {},
                "template": _pod("ray-worker", group, job, profile, **shared),
            }
            for name, group in cluster.groups.items()
        ],
    }


def _pod(
    container_name: str,
    group: MachineGroup,
    job: ShippedJob,
    profile: Profile,
    *,
    files: dict[str, str],
    secrets: list[str],
    environment: dict[str, str],
) -> dict[str, Any]:
    kubernetes = profile.cluster.kubernetes
    amounts = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if group.gpus:
        amounts["nvidia.com/gpu"] = str(group.gpus)
    volumes: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
        {"name": "home", "mountPath": HOME},
    ]
    if files:
        volumes.append({"name": "job", "downwardAPI": {"items": [_item(name) for name in files]}})
        mounts.append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
    container = {
        "name": container_name,
        "image": profile.cluster.image,
        "env": [
            {"name": name, "value": value} for name, value in ({"HOME": HOME} | environment).items()
        ],
        "envFrom": [{"secretRef": {"name": name}} for name in secrets],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": _container_security(),
        "volumeMounts": mounts,
    }
    spec: dict[str, Any] = {
        # Autoscaler v2 replaces pods itself and refuses any that restart in place.
        "restartPolicy": "Never",
        # A worker that is evicted writes a checkpoint first, an endpoint's replica ends its answers.
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": kubernetes.user_id,
            "runAsGroup": kubernetes.user_id,
            "fsGroup": kubernetes.user_id,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if kubernetes.service_account:
        spec["serviceAccountName"] = kubernetes.service_account
    if kubernetes.image_pull_secret:
        spec["imagePullSecrets"] = [{"name": kubernetes.image_pull_secret}]
    if group.node_selector:
        spec["nodeSelector"] = dict(group.node_selector)
    if group.gpus:
        spec["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    metadata: dict[str, Any] = {"labels": {"app.kubernetes.io/instance": job.name}}
    if files:
        metadata["annotations"] = {f"transfusion/{name}": text for name, text in files.items()}
    return {"metadata": metadata, "spec": spec}


def _item(name: str) -> dict[str, Any]:
    return {
        "path": name,
        "fieldRef": {"fieldPath": f"metadata.annotations['transfusion/{name}']"},
    }


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
