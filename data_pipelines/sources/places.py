"""Where raw files lie: a folder, one file or a pattern, on a disk that every node sees or on S3.

A place lists its files with a mark that says what they hold, and hands out only files that still carry it.
On disk the mark is the content's sha256 (memoised by path, size and modification time). On S3 it is the ETag,
which a listing brings along: a million files are a thousand LIST requests and not one look at a file.

Keys are relative to the folder, to the folder of the file, or to the folder above the first special part of
the pattern. Hidden files and folders are left out. The order is that of a walk: a folder's own files by name,
then what is in its folders.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from typing import Any, NamedTuple, Protocol, runtime_checkable

from transfusion.errors import ArtifactError


class RawFile(NamedTuple):
    """One file of raw input."""

    key: str
    """Its path relative to the place's root, as text that encodes to UTF-8 (`files.key_of`)."""

    size_bytes: int

    mark: str
    """`sha256:<hex>` on disk, `etag:<etag>` on S3: changes when the content does."""


@runtime_checkable
class Place(Protocol):
    """Files below one root. Opened anew from its path wherever it is needed; never pickled."""

    url: str
    """For messages: the folder that keys are relative to."""

    reads_ahead: int
    """How many files are worth reading side by side: one on disk, several where each read is a round trip.

    Where it is several, small files beside the data are not read while the place is listed either.
    """

    def keys(self) -> list[str]:
        """Every file that is meant, in the place's order; opens none of them.

        Raises:
            ArtifactError: The place is missing or cannot be listed.
        """

    def marked(self, keys: Sequence[str]) -> Iterator[RawFile | tuple[str, str]]:
        """Each of these files with its mark, or its key and why it cannot be read."""

    def files(self, suffixes: Sequence[str] | None = None) -> list[RawFile]:
        """The files that are meant, marked, in the place's order.

        Args:
            suffixes: Endings that are read. In a folder other files are passed over; a file or a pattern
                that names another ending is an error.

        Raises:
            ArtifactError: The place is missing, holds nothing to read, or a file cannot be read.
        """

    def read(self, key: str, mark: str) -> bytes:
        """A whole file.

        Raises:
            ArtifactError: It is gone, or is not the one that was listed.
        """

    def peek(self, key: str, max_bytes: int | None = None) -> bytes:
        """What a file holds while the place is being listed, at most so many bytes of it.

        Raises:
            OSError: It cannot be read from this disk.
            ArtifactError: It cannot be read from S3.
        """

    def open(self, key: str, mark: str) -> BufferedReader:
        """A file as a seekable stream, of which little is held at a time.

        Raises:
            ArtifactError: It is gone, or is not the one that was listed; on S3 also later, on reading.
        """


def open_place(path: str, *, where: str) -> Place:
    """The place that a path names: a folder, a file or a pattern, on disk or `s3://`. Contacts nothing.

    Args:
        where: What reads it, for messages.

    Raises:
        ArtifactError: It is a URI of a kind that is not read.
    """
    if path.startswith("s3://"):
        from data_pipelines.sources.places_s3 import S3Place

        return S3Place(path)
    if "://" in path and not path.startswith("file://"):
        raise ArtifactError(
            f"{where}: {path}: raw input is read from s3:// or from a disk that every node sees; copy it there"
        )
    from data_pipelines.sources.places_local import LocalPlace

    return LocalPlace(path.removeprefix("file://"))


def read_ahead(place: Place, wanted: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """The content of files, given as key and mark, in their order; a bounded number is fetched ahead."""
    if place.reads_ahead == 1:
        yield from (place.read(key, mark) for key, mark in wanted)
        return
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(place.reads_ahead) as threads:
        try:
            for key, mark in wanted:
                ahead.append(threads.submit(place.read, key, mark))
                if len(ahead) > place.reads_ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for fetch in ahead:
                fetch.cancel()


def split_mark(mark: str) -> dict[str, str]:
    """`{"sha256": ...}` or `{"etag": ...}`: how a descriptor's spec holds a mark."""
    kind, _, value = mark.partition(":")
    return {kind: value}


def mark_of(spec: Mapping[str, Any]) -> str:
    """The mark that `split_mark` put into a spec."""
    kind = next(kind for kind in ("sha256", "etag") if kind in spec)
    return f"{kind}:{spec[kind]}"


def choose(
    keys: Sequence[str], suffixes: Sequence[str] | None, *, path: str, folder: bool
) -> list[str]:
    """The keys with a known ending: what `Place.files` says of `suffixes`.

    Raises:
        ArtifactError: None is left, or one that was named has another ending.
    """
    if suffixes is None:
        known = list(keys)
    else:
        known = [key for key in keys if key.endswith(tuple(suffixes))]
    endings = ", ".join(suffixes or ())
    if not folder and len(known) < len(keys):
        strange = next(key for key in keys if not key.endswith(tuple(suffixes or ())))
        raise ArtifactError(
            f"{path}: {strange}: the ending says no format; these are read: {endings}"
        )
    if not known:
        what = f"no file below this folder ends in one of {endings}" if endings else "holds no file"
        raise ArtifactError(f"{path}: {what}")
    return known


def changed(url: str, key: str, *, again: str = "run the job again") -> ArtifactError:
    """What is raised for a file that is not the one that was listed."""
    return ArtifactError(f"{url}/{key}: is gone or has changed since it was listed; {again}")
