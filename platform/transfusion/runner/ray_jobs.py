"""The connection to a cluster's job server: address, token, and faults in words.

The only module that speaks the Ray Jobs API. Ray is imported when a cluster is contacted, not before.
"""

import contextlib
import logging
import os
import stat
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfusion.errors import TransfusionError

LOG = logging.getLogger("transfusion.job")

_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray lets these win over the address it is given; a command line must mean what it says."""

_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class ClusterError(TransfusionError):
    """A cluster that cannot be reached, refuses us, or does not know what it was asked about."""


@contextlib.contextmanager
def connection(address: str) -> Iterator[Any]:
    """A `JobSubmissionClient` for the dashboard at `address`.

    Raises:
        ClusterError: The address is unusable, nobody answers there, the token is missing or wrong, or a
            request failed; also for what is raised while the client is used.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ClusterError(
            f"--address: must be the dashboard's http:// or https:// address, got {address!r}; "
            "such as http://127.0.0.1:8265 after `ray dashboard FILE` or `kubectl port-forward`"
        )
    headers = _headers(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _without_overrides():
            client = JobSubmissionClient(address, headers=headers)
        yield client
    except AuthenticationError as error:
        had = "the token was refused" if headers else "no token was found"
        raise ClusterError(
            f"{address}: the cluster wants a token, and {had}; put the cluster's token into "
            f"{_token_file()} (chmod 600), or name its file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, OSError) as error:
        raise ClusterError(
            f"{address}: no Ray dashboard answers there; is the cluster up, and its dashboard forwarded "
            "(`ray dashboard FILE`, `kubectl port-forward`)?"
        ) from error
    except RuntimeError as error:
        raise ClusterError(f"{address}: {' '.join(str(error).split())}") from error


def find(client: Any, submission_id: str) -> Any | None:
    """What the cluster knows of a submission: `.status`, `.message`, `.metadata`; None if nothing."""
    try:
        return client.get_job_info(submission_id)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise


def expect(client: Any, submission_id: str, *, address: str) -> Any:
    """As `find`, but a submission that the cluster does not know is the user's mistake."""
    info = find(client, submission_id)
    if info is None:
        known = [job.submission_id for job in client.list_jobs() if job.submission_id]
        told = f"; it knows {', '.join(sorted(known)[-5:])}" if known else "; it knows none"
        raise ClusterError(f"{address}: no submission {submission_id!r}{told}")
    return info


def _headers(address: urllib.parse.SplitResult) -> dict[str, str]:
    token = _token()
    if token is None:
        return {}
    if address.scheme == "http" and address.hostname not in {"127.0.0.1", "::1", "localhost"}:
        LOG.warning(
            f"the token travels unencrypted to {address.hostname}; forward the dashboard to this "
            "machine, or use https"
        )
    return {"Authorization": f"Bearer {token}"}


def _token() -> str | None:
    """The token as Ray looks for it, and also when RAY_AUTH_MODE is not set; None if there is none."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if told := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return told
    path = _token_file()
    if not path.is_file():
        return None
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        LOG.warning(f"{path}: other users of this machine can read the token; chmod 600 {path}")
    return path.read_text(encoding="utf-8").strip() or None


def _token_file() -> Path:
    told = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(told) if told else Path.home() / ".ray" / "auth_token"


@contextlib.contextmanager
def _without_overrides() -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
