"""A store in an S3 bucket, through s3fs."""

import builtins
import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from transfusion.errors import ArtifactError
from transfusion.storage import copies
from transfusion.storage.s3_client import PART_BYTES, patiently
from transfusion.storage.store import (
    Entry,
    Protection,
    Store,
    Unfinished,
    cache_folder,
    whole_range,
)

T = TypeVar("T")

MAX_PARTS = 9_000
"""S3 takes 10,000 parts an object: larger ones get larger parts."""

PARALLEL_LISTINGS = 16


class S3Store(Store):
    """Objects are S3 keys below `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.root = self.uri.removeprefix("s3://")
        self.bucket, _, self._prefix = self.root.partition("/")
        if not self.bucket:
            raise ArtifactError(f"store {uri!r}: names no bucket; it must read s3://bucket/prefix")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return (S3Store, (self.uri,))

    def read(self, path: str) -> bytes:
        # In one request: the whole reply or an error, where ranges put together could miss a part.
        return bytes(
            self.request("read", path, lambda fs, key: fs.cat_file(key, max_concurrency=1))
        )

    def read_range(self, path: str, start: int, end: int) -> bytes:
        data = self.request(
            "read",
            path,
            lambda fs, key: fs.cat_file(key, start=start, end=end, max_concurrency=1),
        )
        return whole_range(bytes(data), start, end, where=self.url(path))

    def write(self, path: str, data: bytes) -> None:
        # One PUT (or a multipart upload completed last): an object is replaced whole or not at all.
        self._put("write", path, data, mode="overwrite")

    def create(self, path: str, data: bytes) -> bool:
        assert data, "an empty object cannot be created exclusively on every store"
        if self.exists(path):
            return False
        try:
            self._put("create", path, data, mode="create")
        except FileExistsError:
            # The reply to our own PUT may have been lost and the PUT sent again: then it is ours.
            return self.read(path) == data
        return True

    def put_file(self, path: str, source: Path) -> None:
        size = source.stat().st_size
        part = _part_bytes(size)
        self.request("write", path, lambda fs, key: fs.put_file(str(source), key, chunksize=part))
        stored = self.size(path)
        if stored != size:
            raise ArtifactError(f"{self.url(path)}: has {stored} bytes after an upload of {size}")

    def local(self, path: str, *, fresh: bool = False) -> Path:
        head = self._head(path)
        size = int(head["ContentLength"])
        mark = str(head.get("ETag", "")).strip('"') or str(size)
        place = cache_folder() / self.root / mark / path
        if fresh or not copies.use(place):
            copies.make_room(cache_folder(), size)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.parent / f".tmp-{uuid.uuid4().hex}"
            try:
                self.request("read", path, lambda fs, key: fs.get_file(key, str(temporary)))
                if temporary.stat().st_size != size:
                    raise ArtifactError(
                        f"{self.url(path)}: {temporary.stat().st_size} bytes came of {size}: it was "
                        "replaced while it was read, or the server cut it short; run it again"
                    )
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)
        return place

    def keeps(self, size_bytes: int) -> bool:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return size_bytes <= copies.limit_bytes(folder)

    def size(self, path: str) -> int | None:
        try:
            head = patiently("look up", self.url(path), self._object("head_object", path))
        except FileNotFoundError:
            return None
        return int(head["ContentLength"])

    def list(self, prefix: str) -> Iterator[Entry]:
        for page in self._pages(prefix):
            yield from self._entries(page)

    def list_fanned(self, prefix: str) -> Iterator[Entry]:
        folders = []
        for page in self._pages(prefix, Delimiter="/"):
            yield from self._entries(page)
            folders += self._folders(page)
        with ThreadPoolExecutor(PARALLEL_LISTINGS) as threads:
            for found in threads.map(lambda folder: [*self.list(folder)], folders):
                yield from found

    def children(self, prefix: str) -> builtins.list[str]:
        return sorted(
            folder for page in self._pages(prefix, Delimiter="/") for folder in self._folders(page)
        )

    def _entries(self, page: dict[str, Any]) -> Iterator[Entry]:
        for item in page.get("Contents", ()):
            yield Entry(
                self._path(item["Key"]), int(item["Size"]), item["LastModified"].timestamp()
            )

    def _folders(self, page: dict[str, Any]) -> builtins.list[str]:
        return [self._path(item["Prefix"]).rstrip("/") for item in page.get("CommonPrefixes", ())]

    def delete(self, path: str) -> None:
        try:
            patiently("delete", self.url(path), self._object("delete_object", path))
        except FileNotFoundError:
            return

    def unfinished(self) -> builtins.list[Unfinished]:
        asked = {"Bucket": self.bucket, "Prefix": f"{self._prefix}/" if self._prefix else ""}
        found = []
        while True:
            request = functools.partial(_uploads, asked=dict(asked))
            page = patiently("list unfinished uploads", self.uri, request)
            for item in page.get("Uploads", ()):
                begun_s = item["Initiated"].timestamp()
                found.append(Unfinished(self._path(item["Key"]), None, begun_s, item["UploadId"]))
            if not page.get("IsTruncated"):
                return found
            asked |= {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def give_up(self, unfinished: Unfinished) -> None:
        request = self._object(
            "abort_multipart_upload", unfinished.path, UploadId=unfinished.upload
        )

        def abort(fs: Any) -> None:
            # When it has ended meanwhile there is no such upload, and no use in asking again.
            with contextlib.suppress(FileNotFoundError):
                request(fs)

        patiently("abort the upload", self.url(unfinished.path), abort)

    def probe(self) -> Protection:
        path = f".probe-{uuid.uuid4().hex}"
        try:
            self.write(path, b"first")
            self._put("create", path, b"second", mode="create")
        except FileExistsError:
            return "conditional-create"
        except ArtifactError as error:
            raise ArtifactError(f"store {self.uri}: cannot be written: {error}") from error
        else:
            return "last-writer-wins"
        finally:
            self._clear(path)

    def _clear(self, path: str) -> None:
        """Removes a probe. What kept it from being written is told by the probe, not from here."""
        try:
            self.delete(path)
        except ArtifactError:
            return

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The pages of a listing, each asked for until it comes: a fault repeats a page, not all of them."""
        below = "/".join(part for part in (self._prefix, prefix) if part)
        arguments |= {"Bucket": self.bucket, "Prefix": f"{below}/" if below else ""}
        while True:
            page = patiently(
                "list", self.url(prefix), lambda fs: fs.call_s3("list_objects_v2", **arguments)
            )
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _head(self, path: str) -> dict[str, Any]:
        try:
            return dict(patiently("read", self.url(path), self._object("head_object", path)))
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.url(path)}: there is no such object") from error

    def request(self, verb: str, path: str, request: Callable[[Any, str], T]) -> T:
        """Runs `request(file system, bucket/key)`, again where the fault may pass.

        Raises:
            ArtifactError: It failed for good, naming the object; caused by FileNotFoundError where there is none.
        """
        try:
            return patiently(
                verb, self.url(path), lambda fs: request(fs, f"{self.bucket}/{self._key(path)}")
            )
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.url(path)}: there is no such object") from error

    def _object(self, method: str, path: str, **asked: str) -> Callable[[Any], Any]:
        return lambda fs: fs.call_s3(method, Bucket=self.bucket, Key=self._key(path), **asked)

    def _put(self, verb: str, path: str, data: bytes, *, mode: str) -> None:
        part = _part_bytes(len(data))
        self.request(verb, path, lambda fs, key: fs.pipe_file(key, data, mode=mode, chunksize=part))

    def _path(self, key: str) -> str:
        return key.removeprefix(self._prefix).lstrip("/")

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".strip("/")


def _uploads(fs: Any, asked: dict[str, str]) -> dict[str, Any]:
    return dict(fs.call_s3("list_multipart_uploads", **asked))


def _part_bytes(size_bytes: int) -> int:
    return max(PART_BYTES, size_bytes // MAX_PARTS)
