"""Freed memory that stays: seen in how often the system has to map pages."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
from transfusion.sample.memory import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
def churn():
    for _ in range(5):
        alive = [torch.ones(2_000_000) for _ in range(8)]
        del alive
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_the_same_tensors_again_map_no_pages_again(repository: Path) -> None:
    paths = [str(repository / "platform")]
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM.format(paths=paths, kept=kept)],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for kept in (False, True)
    ]  # fmt: skip
    # With huge pages a fault maps 2 MiB: only the ratio is sure.
    assert 5 * faults[1] < faults[0]
