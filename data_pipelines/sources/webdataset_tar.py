"""Samples of a tar: members that stand side by side under one name, read from front to back.

The tar may come from anyone. Nothing of it is written to disk, only members that are wanted are read, and no
size that a header claims is believed before the file is known to hold so much.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Any

from data_pipelines.documents import Rejected
from data_pipelines.sources.files import key_of

_MAX_HEADER_BYTES = 1 << 20
"""Longest header that belongs to a member, such as a long name; more is an attack or a broken file."""

_BROKEN = (tarfile.TarError, ValueError, OverflowError, LookupError, RecursionError)
"""What tarfile raises on headers that are none."""


@dataclass(slots=True)
class Sample:
    """Members of one name."""

    key: str
    """`tar/name`, without what follows the name's first dot."""
    members: dict[str, bytes] = field(default_factory=dict)
    """By ending, in lower case: those that were wanted."""
    others: list[str] = field(default_factory=list)
    """Endings of those that were not, and were not read."""
    too_large: str = ""
    """The first member beyond the limit, if any."""


def read_samples(
    stream: BufferedIOBase, key: str, *, wanted: Callable[[str], bool], max_member_bytes: int
) -> Iterator[Sample | Rejected]:
    """Every sample of a tar, and every member and fault that keeps one from being read.

    Args:
        key: The tar's, before the keys of its samples.
        wanted: Whether a member with this ending is read.
    """
    size_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    seen: set[str] = set()
    sample: Sample | None = None
    first = 0
    headers = _headers(stream, size_bytes)
    while True:
        try:
            member = next(headers, None)
        except _Broken as fault:
            yield _cut(key, fault, sample)
            return
        if member is None:
            break
        name = key_of(member.name.removeprefix("./"))
        if member.isdir():
            continue
        if _unsafe(name, member):
            yield Rejected(f"{key}:{member.offset}", "unsafe_member", _shown(name, member))
            continue
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem or (base.startswith("__") and base.endswith("__")):
            continue  # hidden files, and what webdataset itself leaves out
        ending = ending.lower()
        own = f"{key}/{folder}/{stem}" if folder else f"{key}/{stem}"
        again = sample is not None and (ending in sample.members or ending in sample.others)
        if sample is None or own != sample.key or again:
            if sample is not None:
                yield _once(sample, seen, f"{key}:{first}")
            sample, first = Sample(own), member.offset
        missing = member.offset_data + member.size - size_bytes
        if missing > 0:
            what = f"{name[:200]!r} holds {member.size:,} bytes, {missing:,} are not there"
            yield _cut(key, _Broken("truncated_tar", size_bytes, what), sample)
            return
        if not wanted(ending):
            sample.others.append(ending)
        elif member.size > max_member_bytes:
            sample.others.append(ending)
            sample.too_large = sample.too_large or f"{name}: {member.size:,} bytes"
        else:
            stream.seek(member.offset_data)
            sample.members[ending] = stream.read(member.size)
    if sample is not None:
        yield _once(sample, seen, f"{key}:{first}")
    yield from _trailing(stream, key)


def _cut(key: str, fault: "_Broken", sample: Sample | None) -> Rejected:
    """A sample that nothing follows may lack members, and is lost."""
    lost = "" if sample is None else f"; the sample {sample.key} is cut"
    return Rejected(f"{key}:{fault.offset}", fault.reason, f"{fault}{lost}")


def _once(sample: Sample, seen: set[str], where: str) -> Sample | Rejected:
    if sample.key in seen:
        detail = (
            f"{sample.key}: an earlier sample has this key, or the sample's members stand apart"
        )
        return Rejected(where, "duplicate_member", detail)
    seen.add(sample.key)
    if sample.too_large:
        return Rejected(sample.key, "too_large", sample.too_large)
    return sample


def _unsafe(name: str, member: tarfile.TarInfo) -> bool:
    return (
        not member.isreg()
        or member.issparse()
        or name.startswith("/")
        or ".." in name.split("/")
        or "\0" in name
    )


def _shown(name: str, member: tarfile.TarInfo) -> str:
    kinds = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a pipe",
    }
    what = kinds.get(member.type, "a sparse file or one of a type unknown")
    return f"{name[:200]!r}" + ("" if member.isreg() and not member.issparse() else f" is {what}")


class _Broken(Exception):  # noqa: N818
    """Where and why the headers end before the archive does."""

    def __init__(self, reason: str, offset: int, what: object) -> None:
        super().__init__(f"at byte {offset:,}: {' '.join(str(what).split())}"[:300])
        self.reason, self.offset = reason, offset


def _headers(stream: BufferedIOBase, size_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The members, in their order; the last one is followed by zeros.

    Raises:
        _Broken: From some place on this is no archive.
    """
    at = 0
    try:
        # Not `r|`, which ends at a broken header as if the archive did, and copies everything once more.
        reader: Any = _HeaderReader(stream, size_bytes)
        with tarfile.open(fileobj=reader, mode="r:", tarinfo=_Header, errorlevel=2) as tar:
            while (member := tar.next()) is not None:
                if not at <= member.offset < tar.offset or member.size < 0:
                    raise tarfile.ReadError("a header that leads back")
                yield member
                at = tar.offset
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header
            stream.seek(tar.offset)
    except (_NoHeader, *_BROKEN) as fault:
        reason = "truncated_tar" if at or not size_bytes else "not_a_tar"
        raise _Broken(reason, min(at, size_bytes), f"{fault}") from fault


class _NoHeader(Exception):  # noqa: N818
    """What stands where a header or the closing zeros should."""


class _Header(tarfile.TarInfo):
    """Tells a broken header from the end of the archive, which tarfile takes for the same."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise _NoHeader("the file ends without the closing zeros") from error
        except tarfile.HeaderError as error:
            raise _NoHeader(error) from error


class _HeaderReader:
    """The stream as tarfile sees it: for headers alone, which are short."""

    def __init__(self, stream: BufferedIOBase, size_bytes: int) -> None:
        self.tell, self._read = stream.tell, stream.read
        self._seek, self._size_bytes = stream.seek, size_bytes

    def seek(self, offset: int) -> int:
        if not 0 <= offset <= self._size_bytes:
            raise tarfile.ReadError(f"the file has no byte {offset:,}")
        return self._seek(offset)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        return self._read(count)


def _trailing(stream: BufferedIOBase, key: str) -> Iterator[Rejected]:
    """What stands behind the closing zeros: nothing but more zeros is as it should be."""
    offset = stream.tell()
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            offset += len(block) - len(block.lstrip(b"\0"))
            detail = f"at byte {offset:,}, behind the end of the archive: was it joined from several tars?"
            yield Rejected(f"{key}:{offset}", "trailing_data", detail)
            return
        offset += len(block)
