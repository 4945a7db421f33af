"""Talking to S3: one client a process, and one place that decides what is tried again.

Two layers try again, each for what only it can see. botocore repeats a single request (a part of a large
upload, a page of a listing) up to three times; `patiently` repeats the operation, for faults that come after
a reply has begun. s3fs would repeat between the two, which multiplies: it is told not to.
"""

import functools
import os
import random
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from transfusion.errors import ArtifactError, StoreRefusedError, StoreUnavailableError

T = TypeVar("T")

ATTEMPTS = 8
"""Tries of one operation: with the pauses between them a server may be away for half a minute."""

PATIENCE_S = 90.0
"""No try begins later than this after the first; `TRANSFUSION_S3_PATIENCE_S` overrides it."""

READ_TIMEOUT_S = 60.0
"""A connection that is silent for so long has stalled; `TRANSFUSION_S3_READ_TIMEOUT_S` overrides it."""

REQUEST_ATTEMPTS = 3
"""botocore's tries of one request; its pauses are short and random."""

PART_BYTES = 16 * 2**20
"""Size of a part: objects of two and more go up in parts, each repeated alone when it fails."""

MAX_PARALLEL = 4
"""Parts of one object in flight, so that a transfer holds at most 64 MiB."""

_PERMISSIONS = {
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "create": "s3:PutObject",
    "delete": "s3:DeleteObject",
    "list unfinished uploads": "s3:ListBucketMultipartUploads",
    "abort the upload": "s3:AbortMultipartUpload",
}


def filesystem() -> Any:
    """The s3fs of this process and of what the environment says now. Contacts nothing."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")
    # Its event loop does not survive a fork, hence the process id.
    return _filesystem(
        os.getpid(),
        tuple(os.environ.get(name) for name in names),
        _seconds("TRANSFUSION_S3_READ_TIMEOUT_S", READ_TIMEOUT_S),
    )


@functools.lru_cache(maxsize=8)
def _filesystem(process_id: int, environment: tuple[str | None, ...], read_timeout_s: float) -> Any:
    del process_id, environment
    # Several S3-compatible servers refuse the checksums that botocore adds by default since 2025.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    import s3fs

    fs = s3fs.S3FileSystem(
        session=_session(),
        use_listings_cache=False,
        skip_instance_cache=True,
        default_block_size=PART_BYTES,
        max_concurrency=MAX_PARALLEL,
        config_kwargs={
            "connect_timeout": min(5.0, read_timeout_s),
            "read_timeout": read_timeout_s,
            "max_pool_connections": 32,
            "retries": {"total_max_attempts": REQUEST_ATTEMPTS, "mode": "standard"},
        },
    )
    fs.retries = 1
    return fs


def _session() -> Any:
    """A session that reads dates with the standard library: dateutil takes three quarters of a listing's time."""
    from aiobotocore.session import AioSession
    from botocore.utils import parse_timestamp

    def parse(value: Any) -> Any:
        iso = isinstance(value, str) and value[10:11] == "T"
        return datetime.fromisoformat(value) if iso else parse_timestamp(value)

    session = AioSession()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse)
    return session


def patiently(verb: str, url: str, request: Callable[[Any], T]) -> T:
    """Runs a request over the file system, again when the fault may pass.

    Args:
        verb: What is done, for messages: read, write, create, list, look up, delete.
        url: The object, `s3://bucket/key`, for messages.

    Raises:
        FileNotFoundError: There is no such object, or no such upload any more.
        FileExistsError: An exclusive creation found the name taken.
        StoreUnavailableError: The fault stays. It names the object, as the next two do.
        StoreRefusedError: Waiting would not mend it, and it would meet every object; says what to check.
        ArtifactError: The same of this object alone.
    """
    started = time.monotonic()
    patience_s = _seconds("TRANSFUSION_S3_PATIENCE_S", PATIENCE_S)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request(filesystem())
        except Exception as error:
            code = error_code(error)
            if code in ("PreconditionFailed", "412"):
                # s3fs tells the name's being taken only from servers that say which condition failed.
                raise FileExistsError(url) from error
            if isinstance(error, FileNotFoundError) and code not in (
                "NoSuchBucket",
                "NoSuchUpload",
            ):
                raise
            advice = _advice(verb, url, error, code)
            spent = time.monotonic() - started
            if not advice and attempt < ATTEMPTS and spent < patience_s:
                time.sleep(random.uniform(0.5, 1.0) * min(8.0, 2.0 ** (attempt - 2)))  # noqa: S311
                continue
            tried = "" if advice else f" in {attempt} tries over {spent:.0f} s"
            raise _kind(verb, error, code, advice)(
                f"{url}: could not {verb}{tried}: {type(error).__name__}: {error}"
                f"; {advice or 'the server is away or overloaded; run it again when it is back'}"
            ) from error
    raise AssertionError("unreachable")


def error_code(error: BaseException) -> str:
    """The code that S3 answered with, such as `SlowDown`; empty when there was no answer."""
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def _advice(verb: str, url: str, error: Exception, code: str) -> str:
    """What to check when waiting would not help; empty when it may."""
    bucket = url.removeprefix("s3://").split("/")[0]
    if code in ("NotImplemented", "MethodNotAllowed", "501", "405"):
        return "this server does not offer it"
    if code == "NoSuchBucket":
        return f"check that the bucket exists ({bucket!r}), and AWS_ENDPOINT_URL"
    if isinstance(error, PermissionError):
        needed = _PERMISSIONS.get(verb, "s3:GetObject and s3:ListBucket")
        return (
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, and that they give "
            f"{needed} on {bucket!r}"
        )
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, ValueError | TypeError | IsADirectoryError):
        return "check AWS_ENDPOINT_URL and the spelling of the address"
    return ""


def _kind(verb: str, error: Exception, code: str, advice: str) -> type[ArtifactError]:
    if not advice:
        return StoreUnavailableError
    # Single objects may be closed to us; a key that is wrong or has expired opens none.
    reading = verb in ("read", "look up")
    one_object = isinstance(error, PermissionError) and code in ("AccessDenied", "403", "Forbidden")
    return ArtifactError if reading and one_object else StoreRefusedError


def _seconds(name: str, default: float) -> float:
    return float(os.environ.get(name) or default)
