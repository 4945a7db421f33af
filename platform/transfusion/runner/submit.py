"""Handing a job to a running cluster through the Ray Jobs API, and looking after it there.

The submission id is the idempotency key: the same job has the same id, and a cluster runs an id once.
The cluster needs Ray and our dependencies; our two packages and the resolved job travel along.
"""

import asyncio
import contextlib
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfusion.errors import SpecError
from transfusion.runner.profile import Profile, ray_version, read_profile
from transfusion.runner.ray_jobs import LOG, ClusterError, connection, expect, find
from transfusion.runner.run import provenance
from transfusion.runner.shipping import (
    EXCLUDES,
    ShippedJob,
    package_folders,
    resources_yaml,
    ship,
)
from transfusion.spec.job import read_job

ALIVE = {"PENDING", "RUNNING"}
SETUP_TIMEOUT_S = 600
PAUSE_S = 1.0
"""Between a dropped connection and the next attempt."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What became of a submission."""

    submission_id: str
    status: str
    started: bool
    """False when the cluster had it already: nothing was started."""


def submit(
    job: Path,
    overrides: Sequence[str] = (),
    *,
    address: str,
    submission_id: str | None = None,
    until: str | None = None,
    profile: Path | None = None,
    retry: int = 0,
) -> str:
    """Runs a job file on a cluster, once, and says what became of it and how to go on.

    Args:
        submission_id: The idempotency key; by default the job's name and fingerprint.
        retry: Which further attempt at an id that failed or was cancelled; 0 is the first.

    Raises:
        SpecError: The job or the profile is at fault.
        ClusterError: The cluster cannot be reached or refuses us.
    """
    shipped = ship(read_job(job, overrides), until=until)
    submission = submit_shipped(
        shipped,
        address=address,
        submission_id=submission_id,
        until=until,
        profile=read_profile(profile),
        retry=retry,
    )
    return _told(submission, address=address, retry=retry)


def submit_shipped(
    job: ShippedJob,
    *,
    address: str,
    profile: Profile,
    submission_id: str | None = None,
    until: str | None = None,
    retry: int = 0,
) -> Submission:
    """As `submit`, for a job that was read already."""
    if retry < 0:
        raise SpecError(f"--retry: must be 0 or more, got {retry}")
    base = submission_id or job.key
    wanted = _attempt(base, retry)
    with connection(address) as client:
        for number in range(retry + 1):
            earlier = find(client, _attempt(base, number))
            # The last is the one asked for, whatever its state; an earlier one only matters while it runs.
            if earlier is not None and (number == retry or _status(earlier) in ALIVE):
                return _attach(earlier, _attempt(base, number), job)
        _check_version(client, address)
        if job.local_places:
            places = "; ".join(job.local_places)
            LOG.warning(f"on a local disk, so every machine of the cluster must see it: {places}")
        return _start(client, job, wanted, profile=profile, until=until)


def logs(submission_id: str, *, address: str, follow: bool = False) -> Iterator[str]:
    """What a submission printed so far; with `follow`, everything until it ends."""
    with connection(address) as client:
        expect(client, submission_id, address=address)
        if not follow:
            yield client.get_job_logs(submission_id)
            return
        yield from _follow(client, submission_id)


def cancel(submission_id: str, *, address: str, timeout_s: float = 60.0) -> str:
    """Stops a submission and waits until it has stopped. What it finished stays in the store."""
    with connection(address) as client:
        status = _status(expect(client, submission_id, address=address))
        if status not in ALIVE:
            return f"{submission_id} is not running: {status}"
        client.stop_job(submission_id)
        deadline = time.monotonic() + timeout_s
        while (status := _status(find(client, submission_id))) in ALIVE:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{submission_id} was told to stop {timeout_s:.0f}s ago and is still {status}; "
                    "look at its logs"
                )
            time.sleep(0.25)
        return f"{submission_id} stopped: {status}"


def runtime_env() -> dict[str, Any]:
    """What a job's processes need beyond the cluster's own environment: the code of both packages."""
    return {
        "py_modules": package_folders(),
        "excludes": EXCLUDES,
        "config": {"setup_timeout_seconds": SETUP_TIMEOUT_S},
    }


def _start(
    client: Any, job: ShippedJob, submission_id: str, *, profile: Profile, until: str | None
) -> Submission:
    commit = str(provenance()["commit"])
    with tempfile.TemporaryDirectory(prefix="transfusion-submit-") as folder:
        (Path(folder) / "job.yaml").write_text(job.yaml, encoding="utf-8")
        (Path(folder) / "profile.yaml").write_text(resources_yaml(profile), encoding="utf-8")
        environment = {
            **runtime_env(),
            "working_dir": folder,
            # The cluster has no repository to ask.
            "env_vars": {"TRANSFUSION_COMMIT": commit},
        }
        # A listing of S3 that the cluster kept from another job is not what this one was submitted for.
        entrypoint = "python -m transfusion.cli run job.yaml --profile profile.yaml --refresh"
        try:
            client.submit_job(
                entrypoint=entrypoint + (f" --until {shlex.quote(until)}" if until else ""),
                submission_id=submission_id,
                runtime_env=environment,
                metadata={"job": job.name, "fingerprint": job.fingerprint, "commit": commit},
                entrypoint_num_cpus=profile.driver.cpus or None,
                entrypoint_num_gpus=profile.driver.gpus or None,
            )
        except RuntimeError:
            # Another submission of the same id was faster, or the answer to ours was lost on the way.
            other = find(client, submission_id)
            if other is None:
                raise
            return _attach(other, submission_id, job)
    return Submission(submission_id=submission_id, status="PENDING", started=True)


def _attach(info: Any, submission_id: str, job: ShippedJob) -> Submission:
    before = (info.metadata or {}).get("fingerprint")
    if before != job.fingerprint:
        raise ClusterError(
            f"--submission-id {submission_id}: the cluster knows it as another job "
            f"(fingerprint {str(before)[:10]}, this one {job.fingerprint[:10]}); choose another id, or none"
        )
    return Submission(submission_id=submission_id, status=_status(info), started=False)


def _attempt(base: str, number: int) -> str:
    return f"{base}-retry{number}" if number else base


def _status(info: Any) -> str:
    return str(getattr(info.status, "value", info.status)) if info is not None else "GONE"


def _check_version(client: Any, address: str) -> None:
    there = getattr(client, "_server_ray_version", None)
    if there is not None and there != ray_version():
        raise ClusterError(
            f"{address}: the cluster runs Ray {there}, this machine {ray_version()}; "
            "they must be the same, or workers fail in unclear ways"
        )


def _follow(client: Any, submission_id: str) -> Iterator[str]:
    """The log as it grows. A dropped connection is taken up again where it broke off."""
    seen = 0
    loop = asyncio.new_event_loop()
    try:
        while True:
            skip = seen
            with contextlib.suppress(RuntimeError, OSError):
                stream = client.tail_job_logs(submission_id)
                for text in _drain(loop, stream):
                    fresh = text[skip:]
                    skip = max(0, skip - len(text))
                    seen += len(fresh)
                    if fresh:
                        yield fresh
            if _status(find(client, submission_id)) not in ALIVE:
                yield from _rest(client, submission_id, seen)
                return
            time.sleep(PAUSE_S)
    finally:
        loop.close()


def _rest(client: Any, submission_id: str, seen: int) -> Iterator[str]:
    """What was printed between the end of the stream and the end of the job."""
    rest = client.get_job_logs(submission_id)[seen:]
    if rest:
        yield rest


def _drain(loop: asyncio.AbstractEventLoop, stream: Any) -> Iterator[str]:
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(stream))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(stream.aclose())


def _told(submission: Submission, *, address: str, retry: int) -> str:
    name, status = submission.submission_id, submission.status
    at = "" if address == "http://127.0.0.1:8265" else f" --address {address}"
    follow = f"transfusion logs {name} --follow{at}"
    if submission.started:
        return (
            f"submitted {name}\n  follow it:  {follow}\n  stop it:    transfusion cancel {name}{at}"
        )
    if status in ALIVE:
        return f"{name} is there already ({status}); nothing was started\n  follow it:  {follow}"
    if status == "SUCCEEDED":
        return (
            f"{name} is there already and succeeded; nothing was started\n"
            f"  to run it again (what is cached stays):  the same command with --retry {retry + 1}"
        )
    return (
        f"{name} is there already and ended as {status}; nothing was started\n"
        f"  why:         transfusion logs {name}{at}\n"
        f"  try again:   the same command with --retry {retry + 1}; it goes on from what is in the store"
    )
