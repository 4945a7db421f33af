"""Image files that rows name: found in their folder, and read into documents."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from posixpath import basename, normpath, splitext
from typing import Literal

from data_pipelines.documents import Document, Image, Rejected
from data_pipelines.sources.files import key_of
from data_pipelines.sources.places import Place, RawFile

_ROWS_AHEAD = 64


class ImageFiles:
    """The files of a place by name. Listed once; none is opened before it is named."""

    def __init__(self, place: Place, *, by: Literal["name", "sha256_of_url"]) -> None:
        self._place = place
        self._by = by
        keys = place.keys()
        # Sorted, so that of two files of one stem the choice is always the same.
        self._keys = (
            {key: key for key in keys}
            if by == "name"
            else {splitext(basename(key))[0]: key for key in sorted(keys, reverse=True)}
        )

    def marked(self, names: Iterable[str]) -> dict[str, RawFile]:
        """Names with their files; a name without a readable file is left out.

        A name that leads out of the folder (`../x`, `/x`) has none.
        """
        found = dict(self._found(names))
        keys = sorted(set(found.values()))
        files = {file.key: file for file in self._place.marked(keys) if isinstance(file, RawFile)}
        return {name: files[key] for name, key in sorted(found.items()) if key in files}

    def _found(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            try:
                wanted = self._wanted(name)
            except UnicodeEncodeError:  # half a surrogate pair: no file can be called so
                continue
            if wanted in self._keys:
                yield name, self._keys[wanted]

    def _wanted(self, name: str) -> str:
        if self._by == "sha256_of_url":
            return hashlib.sha256(name.encode("utf-8")).hexdigest()
        name.encode("utf-8")
        return key_of(normpath(name)) if "\0" not in name else ""


@dataclass(frozen=True, slots=True)
class Unfilled:
    """A document whose image files are not read yet."""

    document: Document

    files: Mapping[int, RawFile]
    """By index of the segment, which holds an image without bytes until then."""


def filled(
    place: Place | None, drafts: Iterable[Unfilled | Rejected]
) -> Iterator[Document | Rejected]:
    """The documents with what their files hold; a bounded number of files is fetched ahead."""
    if place is None:
        yield from (row if isinstance(row, Rejected) else row.document for row in drafts)
        return
    ahead: deque[tuple[Unfilled | Rejected, dict[int, Future[bytes]]]] = deque()
    num_fetched = 0
    with ThreadPoolExecutor(place.reads_ahead) as threads:
        try:
            for row in drafts:
                files = {} if isinstance(row, Rejected) else row.files
                fetches = {
                    at: threads.submit(place.read, file.key, file.mark)
                    for at, file in files.items()
                }
                ahead.append((row, fetches))
                num_fetched += len(fetches)
                while num_fetched > place.reads_ahead or len(ahead) > _ROWS_AHEAD:
                    done, fetches = ahead.popleft()
                    num_fetched -= len(fetches)
                    yield _filled(done, fetches)
            while ahead:
                yield _filled(*ahead.popleft())
        finally:
            for _, fetches in ahead:
                for fetch in fetches.values():
                    fetch.cancel()


def _filled(row: Unfilled | Rejected, fetches: Mapping[int, Future[bytes]]) -> Document | Rejected:
    if isinstance(row, Rejected):
        return row
    segments = list(row.document.segments)
    for at, fetch in fetches.items():
        segment = segments[at]
        assert isinstance(segment, Image)
        segments[at] = Image(fetch.result(), segment.name)
    return Document(row.document.key, tuple(segments), row.document.metadata)
