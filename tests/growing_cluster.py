"""Ray with its autoscaler and with machines that come and go: processes, by Ray's own provider for tests."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from tests.s3 import free_port
from transfusion.runner.cluster import serving_environment, start_ray, stop_ray

_COMMANDS = tuple(
    f"{whose}_commands"
    for whose in [
        "initialization",
        "setup",
        "head_setup",
        "worker_setup",
        "head_start_ray",
        "worker_start_ray",
    ]
)
"""What the autoscaler wants told that nothing is to be run on a new machine."""


def _growing(address: str) -> dict[str, Any]:
    """A head without a place for replicas, and up to three machines that come and go as they are needed."""
    return {
        "cluster_name": "load",
        "max_workers": 3,
        "provider": {
            # By name it wants a file that Ray's wheel has not.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "machine": {
                "resources": {"CPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "docker": {},
        **{name: [] for name in _COMMANDS},
        "cluster_synced_files": [],
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
    }


@contextlib.contextmanager
def growing_cluster() -> Iterator[None]:
    """Ray with its autoscaler, and connected to."""
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    os.environ |= serving_environment("ray") | {
        # All these machines share one's addresses, so only the head's proxy has the port that callers know.
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_port()),
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "disabled",
    }
    of_ray = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cluster.json"
        config.write_text(json.dumps(_growing(address)))
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"),
            *(f"--port={port}", f"--autoscaling-config={config}", "--disable-usage-stats"),
        ]  # fmt: skip
        # A group of its own is what ends all of it.
        head = subprocess.Popen(
            command, env=os.environ | of_ray, start_new_session=True, stdout=subprocess.DEVNULL
        )
        try:
            _connect()
            yield
        finally:
            stop_ray()
            head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(60)
            # Its machines are not its own children: they have its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


def _connect(seconds: float = 120) -> None:
    """As soon as the head takes it: its port is there some seconds before."""
    limit = time.monotonic() + seconds
    while True:
        try:
            start_ray(num_cpus=None, log=logging.getLogger("load"))
            return
        except ConnectionError:
            if time.monotonic() > limit:
                raise
            time.sleep(1)
