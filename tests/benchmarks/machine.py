"""What a number was measured on."""

import os
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """CPU, its instruction sets that matter, torch and the commit."""
    words = _cpuinfo()
    return {
        "cpu": words.get("model name", "unknown CPU"),
        "cores": os.cpu_count(),
        "instructions": sorted(
            {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(words.get("flags", "").split())
        ),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "load_average": os.getloadavg()[0],
    }


def peak_mib() -> float:
    """The most memory that this program had resident; `getrusage` tells its parent's, where that had more."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None, status
    return int(found.group(1)) / 1024


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _commit() -> str:
    """Short hash, with a + when files differ from it; empty outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
