"""Ray with its autoscaler and with machines that come and go: processes, by Ray's own provider for tests."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.s3 import free_port
from transfusion.runner.cluster import serving_environment, start_ray, stop_ray


def _growing(head: str) -> dict[str, Any]:
    """A head without a place for replicas, and up to three machines that come and go as they are needed."""
    return {
        "cluster_name": "load",
        "max_workers": 3,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": head,
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "machine": {
                "resources": {"CPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        "head_node_type": "head",
        "auth": {},
        "idle_timeout_minutes": 0.2,
    }


@contextlib.contextmanager
def growing_cluster() -> Iterator[None]:
    """Ray with its autoscaler, and connected to."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    port = free_port()
    os.environ |= serving_environment("ray") | {
        # All these machines share one's addresses, so only the head's proxy has the port that callers know.
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_port()),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    of_ray = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cluster.json"
        config.write_text(json.dumps(_growing(FAKE_HEAD_NODE_ID)))
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"),
            *(f"--port={port}", f"--autoscaling-config={config}", "--disable-usage-stats"),
        ]  # fmt: skip
        # A group of its own is what ends all of it.
        head = subprocess.Popen(
            command, env=os.environ | of_ray, start_new_session=True, stdout=subprocess.DEVNULL
        )
        try:
            _wait_for(port)
            start_ray(num_cpus=None, log=logging.getLogger("load"))
            yield
        finally:
            stop_ray()
            os.killpg(head.pid, signal.SIGTERM)
            head.wait(30)


def _wait_for(port: int, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"Ray did not start within {seconds:g} s")
