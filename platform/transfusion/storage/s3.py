"""A store in an S3 bucket, through s3fs."""

import builtins
import errno
import functools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from transfusion.errors import ArtifactError
from transfusion.storage.store import Entry, Protection, Store, cache_folder

T = TypeVar("T")

ATTEMPTS = 6
"""Tries of one request, about 20 s in all: SlowDown, resets and a restarting server pass; an outage is told."""

_FINAL = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError)


@functools.lru_cache(maxsize=8)
def _filesystem(process_id: int) -> Any:
    """One s3fs a process: its event loop does not survive a fork, hence the key."""
    del process_id
    # Several S3-compatible servers refuse the checksums that botocore adds by default since 2025.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    import s3fs

    return s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}},
    )


class S3Store(Store):
    """Objects are S3 keys below `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.root = self.uri.removeprefix("s3://")
        if not self.root.split("/")[0]:
            raise ArtifactError(f"store {uri!r}: names no bucket; it must read s3://bucket/prefix")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return (S3Store, (self.uri,))

    def read(self, path: str) -> bytes:
        return bytes(self._retry("read", path, lambda fs, key: fs.cat_file(key)))

    def write(self, path: str, data: bytes) -> None:
        # One PUT (or a multipart upload completed last): an object is replaced whole or not at all.
        self._retry("write", path, lambda fs, key: fs.pipe_file(key, data))

    def create(self, path: str, data: bytes) -> bool:
        assert data, "an empty object cannot be created exclusively on every store"
        if self.exists(path):
            return False
        try:
            self._retry("create", path, lambda fs, key: fs.pipe_file(key, data, mode="create"))
        except FileExistsError:
            # The reply to our own PUT may have been lost and the PUT sent again: then it is ours.
            return self.read(path) == data
        return True

    def put_file(self, path: str, source: Path) -> None:
        size = source.stat().st_size
        self._retry("put", path, lambda fs, key: fs.put_file(str(source), key))
        stored = int(self._retry("size", path, lambda fs, key: fs.size(key)))
        if stored != size:
            raise ArtifactError(f"{self.url(path)}: has {stored} bytes after an upload of {size}")

    def local(self, path: str) -> Path:
        info = self._retry("read", path, lambda fs, key: fs.info(key))
        mark = str(info.get("ETag", "")).strip('"') or str(info["size"])
        place = cache_folder() / self.root / mark / path
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.parent / f".tmp-{uuid.uuid4().hex}"
            self._retry("read", path, lambda fs, key: fs.get_file(key, str(temporary)))
            if temporary.stat().st_size != info["size"]:
                temporary.unlink()
                raise ArtifactError(f"{self.url(path)}: came short of {info['size']} bytes")
            temporary.replace(place)
        return place

    def exists(self, path: str) -> bool:
        return bool(self._retry("look up", path, lambda fs, key: fs.exists(key)))

    def list(self, prefix: str) -> Iterator[Entry]:
        try:
            found = self._retry("list", prefix, lambda fs, key: fs.find(key, detail=True))
        except ArtifactError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return
            raise
        for key in sorted(found):
            info = found[key]
            modified = info.get("LastModified")
            seconds = modified.timestamp() if modified is not None else time.time()
            yield Entry(key.removeprefix(self.root).lstrip("/"), int(info["size"]), seconds)

    def children(self, prefix: str) -> builtins.list[str]:
        try:
            found = self._retry("list", prefix, lambda fs, key: fs.ls(key, detail=True))
        except ArtifactError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        names = (
            item["name"].removeprefix(self.root).strip("/")
            for item in found
            if item["type"] == "directory"
        )
        return sorted(names)

    def delete(self, path: str) -> None:
        if self.exists(path):
            self._retry("delete", path, lambda fs, key: fs.rm_file(key))

    def probe(self) -> Protection:
        path = f".probe-{uuid.uuid4().hex}"
        fs, key = _filesystem(os.getpid()), self._key(path)
        try:
            fs.pipe_file(key, b"first")
        except Exception as error:
            raise ArtifactError(
                f"store {self.uri}: cannot be written: {_reason(error)}; check that the bucket exists, and "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
            ) from error
        try:
            fs.pipe_file(key, b"second", mode="create")
        except (FileExistsError, OSError):
            return "conditional-create"
        else:
            return "last-writer-wins"
        finally:
            self.delete(path)

    def _key(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _retry(self, verb: str, path: str, request: Callable[[Any, str], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return request(_filesystem(os.getpid()), self._key(path))
            except FileExistsError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno == errno.EINVAL and verb == "create":
                    # Some servers answer 412 without naming the condition: s3fs then says EINVAL.
                    raise FileExistsError(self.url(path)) from error
                if isinstance(error, FileNotFoundError):
                    raise ArtifactError(f"{self.url(path)}: there is no such object") from error
                if isinstance(error, _FINAL) or attempt == ATTEMPTS:
                    raise ArtifactError(
                        f"{self.url(path)}: could not {verb} in {attempt} tries: {_reason(error)}"
                    ) from error
                time.sleep(random.uniform(0.5, 1.0) * 2 ** (attempt - 2))  # noqa: S311
        raise AssertionError("unreachable")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
