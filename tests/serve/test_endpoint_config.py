"""The block of a job that says how its model is served."""

import subprocess
import sys
from pathlib import Path

from transfusion.serve.config import EndpointConfig


def test_the_block_of_a_job_listens_on_loopback_unless_told_otherwise() -> None:
    assert EndpointConfig().host == "127.0.0.1"


def test_reading_the_block_loads_neither_torch_nor_ray(repository: Path) -> None:
    code = "import sys, transfusion.serve.config; print({'torch', 'ray', 'fastapi'} & set(sys.modules))"
    paths = [str(repository / "platform"), str(repository)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
