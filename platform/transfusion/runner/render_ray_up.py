"""A file for `ray up`: machines of a cloud, each running the image, with token authentication.

The file holds no key: the token is copied from the file that `ray get-auth-token --generate` made here,
and access to the bucket comes from the machines' own identity.
"""

from typing import Any

from transfusion.runner.profile import MachineGroup, Profile
from transfusion.runner.shipping import ShippedJob

TOKEN = "~/.ray/auth_token"  # noqa: S105  # where Ray looks for it, not what it holds

_START = "ulimit -n 65536; RAY_AUTH_MODE=token ray start"


def ray_up(job: ShippedJob, profile: Profile) -> dict[str, Any]:
    """A cluster that `transfusion submit` gives jobs to."""
    cluster = profile.cluster
    types: dict[str, Any] = {
        "head": {
            "node_config": dict(cluster.head.launch),
            "resources": {"CPU": 0},
            "min_workers": 0,
            "max_workers": 0,
        }
    }
    types |= {name: _node_type(group) for name, group in cluster.groups.items()}
    return {
        "cluster_name": job.key,
        "max_workers": sum(group.max for group in cluster.groups.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": cluster.ray_up.idle_timeout_minutes,
        "provider": dict(cluster.ray_up.provider),
        "auth": {"ssh_user": cluster.ray_up.ssh_user},
        "docker": {
            "image": cluster.image,
            "container_name": "transfusion",
            "pull_before_run": True,
            "run_options": list(cluster.ray_up.run_options),
        },
        "file_mounts": {TOKEN: TOKEN},
        "setup_commands": [f"chmod 600 {TOKEN}"],
        "head_node_type": "head",
        "available_node_types": types,
        # The dashboard listens on loopback only: `ray dashboard FILE` forwards it over SSH.
        "head_start_ray_commands": [
            "ray stop",
            f"{_START} --head --port=6379 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_START} --address=$RAY_HEAD_IP:6379"],
    }


def _node_type(group: MachineGroup) -> dict[str, Any]:
    resources = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})
    return {
        "node_config": dict(group.launch),
        "resources": resources,
        "min_workers": group.min,
        "max_workers": group.max,
    }
