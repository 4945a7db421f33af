"""One short round of `tests.chaos_encode`; the command itself runs as many as one likes."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.ray
@pytest.mark.slow
def test_encoding_under_kills_comes_to_the_undisturbed_artifact(repository: Path) -> None:
    # In a process of its own: its cluster is killed, which the one of this session must not be.
    command = [sys.executable, "-m", "tests.chaos_encode"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--images", "160", "--kills", "3", "--seed", "4"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 rounds of 160 images equal" in done.stdout
