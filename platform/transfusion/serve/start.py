"""Where the time goes until a replica answers."""

import os
import time
from pathlib import Path

PARTS = ("process", "fetch", "weights", "warm_up")
"""Ray's worker up to its first load (imports among them); the package's files from the store; reading, verifying
and placing its weights; the first steps, which compile and grow what later ones find."""


class StartClock:
    """Seconds of each part that a replica can measure itself.

    What is before them, waiting for room or for a machine to come, Ray Serve measures: what
    `ray_serve_replica_startup_latency_ms` has beyond `ray_serve_replica_initialization_latency_ms`.
    """

    def __init__(self, *, is_first: bool) -> None:
        """Starts counting.

        Args:
            is_first: Whether this process has loaded nothing before.
        """
        self.parts = dict.fromkeys(PARTS, 0.0)
        if is_first:
            self.parts["process"] = process_age_s()

    def add(self, part: str, seconds: float) -> None:
        """Counts time of a part."""
        self.parts[part] += seconds

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())


def process_age_s() -> float:
    """Since this process was started; 0 where the system does not say (it is read from Linux' /proc)."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return 0.0
    # Fields are counted behind the command's name, which may hold blanks; the 22nd is the start, in ticks.
    started = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
