"""A place in an S3 bucket: listed by pages, read by ranges, every reply compared with the ETag that was listed.

Not `fs.find`: it holds a dict of a kilobyte for each file, and tells nothing of how many requests it took.
"""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

from data_pipelines.sources.files import key_of, path_of
from data_pipelines.sources.listing_memo import remembered
from data_pipelines.sources.place_patterns import (
    is_pattern,
    literal_start,
    matcher,
    split_pattern,
)
from data_pipelines.sources.places import RawFile, changed, choose
from data_pipelines.sources.ranges import ranged
from transfusion.errors import ArtifactError
from transfusion.storage.s3_client import patiently


class S3Place:
    """What lies below a prefix, one object, or the objects that fit a pattern."""

    reads_ahead = 16
    """At 30 ms a small GET that is 500 files a second."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pattern = ""
        self.url = path.rstrip("/")
        if is_pattern(self.url):
            self.url, self._pattern = split_pattern(self.url)
        self._bucket, _, folder = self.url.removeprefix("s3://").partition("/")
        if not self.url.startswith("s3://") or not self._bucket:
            raise ArtifactError(f"{path}: names no bucket; it must read s3://bucket/prefix")
        self._prefix = f"{folder}/" if folder else ""
        # Whether a plain path names a folder or an object is not known before it is listed.
        self._object = "" if self._pattern or path.endswith("/") else folder
        self._listed: dict[str, RawFile] | None = None

    def keys(self) -> list[str]:
        return list(self._listing())

    def marked(self, keys: Sequence[str]) -> Iterator[RawFile | tuple[str, str]]:
        listed = self._listing()
        for key in keys:
            yield listed.get(key, (key, "there is no such object"))

    def files(self, suffixes: Sequence[str] | None = None) -> list[RawFile]:
        listed = self._listing()
        is_object = list(listed) == [key_of(self._object.split("/")[-1])]
        folder = not self._pattern and not is_object
        chosen = choose(list(listed), suffixes, path=self._path, folder=folder)
        return [listed[key] for key in chosen]

    def read(self, key: str, mark: str) -> bytes:
        return self._get(key, mark)

    def peek(self, key: str, max_bytes: int | None = None) -> bytes:
        file = self._listing()[key]
        size = file.size_bytes if max_bytes is None else min(file.size_bytes, max_bytes)
        return self._span(key, file.mark, 0, size) if size else b""

    def open(self, key: str, mark: str) -> io.BufferedReader:
        for name in self._names(key):
            head = self._head(name)
            if head is not None and head.mark == mark:
                return ranged(
                    partial(self._span, key, mark), head.size_bytes, name=f"{self.url}/{key}"
                )
        raise changed(self.url, key, again="run the job again with --refresh")

    def _span(self, key: str, mark: str, start: int, stop: int) -> bytes:
        """Bytes of a file that still carries its mark."""
        data = self._get(key, mark, Range=f"bytes={start}-{stop - 1}")
        if len(data) != stop - start:
            raise ArtifactError(
                f"{self.url}/{key}: {len(data)} bytes came of {stop - start} asked for at {start}"
            )
        return data

    def _listing(self) -> dict[str, RawFile]:
        """By key, in the order of a walk."""
        if self._listed is None:
            files = remembered(self._path, self._list)
            if not files:
                what = "no file fits this pattern" if self._pattern else "no such file or folder"
                raise ArtifactError(f"{self._path}: {what}")
            self._listed = {file.key: file for file in sorted(files, key=_walk_order)}
        return self._listed

    def _list(self) -> tuple[list[RawFile], int]:
        """The files that are meant, and the requests that it took: one for each thousand below the prefix."""
        fits = matcher(self._pattern) if self._pattern else None
        found: list[RawFile] = []
        asked = {"Bucket": self._bucket, "Prefix": self._prefix + literal_start(self._pattern)}
        num_requests = 0
        while True:
            num_requests += 1
            page = patiently("list", self.url, lambda fs: fs.call_s3("list_objects_v2", **asked))
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(self._prefix)
                parts = name.split("/")
                # An object whose name ends in a slash stands for a folder.
                shown = parts[-1] and not any(part.startswith(".") for part in parts)
                if shown and (fits is None or fits(name)):
                    found.append(_file(name, item["Size"], item["ETag"]))
            if not page.get("IsTruncated"):
                break
            asked["ContinuationToken"] = page["NextContinuationToken"]
        if not found and self._object and (head := self._head(self._object)) is not None:
            found.append(head)
        return found, num_requests

    def _names(self, key: str) -> list[str]:
        """Which object a key may be. What is read must carry the mark, so both may be asked for."""
        below = self._prefix + path_of(key)
        return [self._object, below] if key == key_of(self._object.split("/")[-1]) else [below]

    def _head(self, name: str) -> RawFile | None:
        """An object by its whole name; None when there is none."""
        try:
            head = patiently(
                "look up",
                f"s3://{self._bucket}/{name}",
                lambda fs: fs.call_s3("head_object", Bucket=self._bucket, Key=name),
            )
        except FileNotFoundError:
            return None
        return _file(name.split("/")[-1], head["ContentLength"], head["ETag"])

    def _get(self, key: str, mark: str, **asked: str) -> bytes:
        for name in self._names(key):
            fetch = partial(_body, mark=mark, Bucket=self._bucket, Key=name, **asked)
            try:
                data = patiently("read", f"s3://{self._bucket}/{name}", fetch)
            except FileNotFoundError:
                continue
            if data is not None:
                return data
        raise changed(self.url, key, again="run the job again with --refresh")


def _file(name: str, size: int, etag: str) -> RawFile:
    return RawFile(key_of(name), int(size), f"etag:{etag.strip(chr(34))}")


def _body(fs: Any, mark: str, **asked: str) -> bytes | None:
    """What an object holds; None, unread, when it is not the one of the mark.

    The ETag of the reply and its body are of one object, also on servers that know no `If-Match`.
    """
    from fsspec.asyn import sync

    async def get() -> bytes | None:
        reply = await fs._call_s3("get_object", **asked)
        try:
            same = f"etag:{reply['ETag'].strip(chr(34))}" == mark
            return await reply["Body"].read() if same else None
        finally:
            reply["Body"].close()

    return cast("bytes | None", sync(fs.loop, get))


def _walk_order(file: RawFile) -> list[tuple[bool, bytes]]:
    *folders, name = file.key.split("/")
    return [*((True, part.encode("utf-8")) for part in folders), (False, name.encode("utf-8"))]
