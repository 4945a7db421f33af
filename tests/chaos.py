"""Kill a job at random moments, run the same command again, and compare with an undisturbed run.

    python -m tests.chaos jobs/quickstart.yaml --kills 10 [--driver-only] [--seed 0] [key=value ...]

Every kill is SIGKILL: of the whole process tree (driver, Ray's daemons, workers), or with --driver-only of the
driver alone, whose actors outlive it by a second or two. It passes when each manifest's content digest equals
the undisturbed run's; a training run's digest covers its weights and its losses, step by step.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MARK = "TRANSFUSION_CHAOS_RUN"

SILENCE_S = 300.0
"""After which a job is killed that has not said what the time counts from."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the job ended."""

    finished: bool
    seconds: float
    output: str


def run_job(
    job: Path,
    overrides: list[str],
    *,
    kill_after_s: float | None,
    driver_only: bool,
    environment: Mapping[str, str] | None = None,
    until: str | None = None,
    counted_from: str | None = None,
) -> Outcome:
    """Runs the job; kills it after that time unless it has ended by then.

    Args:
        counted_from: What it must have said before the time begins, so that a slow machine is killed there too.
    """
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "transfusion.cli", "run", str(job), *overrides]
    command += ["--until", until] if until else []
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env={**(environment or os.environ), MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while counted_from and process.poll() is None and counted_from not in _said(output):
                if time.monotonic() - started > SILENCE_S:
                    raise subprocess.TimeoutExpired(command, SILENCE_S)
                time.sleep(0.2)
            code = process.wait(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            code = None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            if not driver_only:
                kill_marked(mark)
        text = _said(output)
    if code:
        raise SystemExit(f"the job failed with {code}:\n{text}")
    return Outcome(code == 0, time.monotonic() - started, text)


def _said(output: IO[str]) -> str:
    """By others, whose place in the file is not moved: reading has one of its own."""
    return Path(f"/proc/self/fd/{output.fileno()}").read_text(errors="replace")


def kill_marked(mark: str) -> None:
    """Kills every process that inherited the mark, whoever its parent is by now; until there is none."""
    needle = f"{MARK}={mark}".encode()
    for _ in range(50):
        found = 0
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (place / "environ").read_bytes().split(b"\0"):
                    os.kill(int(place.name), signal.SIGKILL)
                    found += 1
            except (OSError, ValueError):
                continue  # gone, or another user's
        if not found:
            return
        time.sleep(0.05)


def digests(
    job: Path, overrides: list[str], *, environment: Mapping[str, str] | None = None
) -> dict[str, dict[str, object]]:
    """Status, digest and outcomes of every stage, as `transfusion show --json` tells them."""
    command = [sys.executable, "-m", "transfusion.cli", "show", str(job), "--json", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=dict(environment or os.environ)
    )
    stages = json.loads(done.stdout)["stages"]
    return {
        name: {key: stage.get(key) for key in ("status", "fingerprint", "digest", "outcomes")}
        for name, stage in stages.items()
    }


def disturb(
    job: Path, overrides: list[str], *, kills: int, seconds: float, seed: int, driver_only: bool
) -> list[float]:
    """Kills the job that often, at random moments of an undisturbed run's length, then lets it finish."""
    moments = random.Random(seed)
    done: list[float] = []
    while len(done) < kills:
        # Work that is done is not repeated, so the run that is left gets shorter with every kill.
        moment = moments.uniform(1.0, max(seconds / 3, 8.0))
        outcome = run_job(job, overrides, kill_after_s=moment, driver_only=driver_only)
        if outcome.finished:
            break
        done.append(round(moment, 1))
        print(f"killed after {moment:.1f} s", flush=True)
    run_job(job, overrides, kill_after_s=None, driver_only=False)
    return done


def main() -> None:
    """Runs the comparison from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--driver-only", action="store_true")
    parser.add_argument("--reference", help="a store that holds an undisturbed run already")
    parser.add_argument("--reference-s", type=float, help="how long that run took", default=180.0)
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        calm = [*options.overrides, f"store={options.reference or Path(folder) / 'calm'}"]
        reference = run_job(options.job, calm, kill_after_s=None, driver_only=False)
        expected = digests(options.job, calm)
        seconds = reference.seconds if options.reference is None else options.reference_s
        print(f"undisturbed: {reference.seconds:.1f} s", flush=True)
        rough = [*options.overrides, f"store={Path(folder) / 'rough'}"]
        moments = disturb(
            options.job, rough, kills=options.kills, seconds=seconds, seed=options.seed,
            driver_only=options.driver_only,
        )  # fmt: skip
        found = digests(options.job, rough)
    different = [name for name in expected if expected[name] != found[name]]
    for name in expected:
        print(f"{'DIFFERS' if name in different else 'equal':8} {name}")
    print(
        f"{len(moments)} kills, {len(expected) - len(different)} of {len(expected)} manifests equal"
    )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
