"""Lines of a file, plain, gzipped or in Zstandard, of which no more than one is held."""

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from data_pipelines.documents import Rejected

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

UNPACKING = (OSError, EOFError, zlib.error)
"""What reading a packed file raises when it is cut short or altered."""


def read_lines(
    stream: BinaryIO, key: str, *, max_bytes: int
) -> Iterator[tuple[int, bytes] | Rejected]:
    """Lines that are not blank, with their numbers from 1; the key's ending says how the file is packed.

    A line that is too long is a rejected row (`too_long`), and so is the place from where on a packed file cannot
    be unpacked (`truncated`).

    Raises:
        OSError: The disk cannot be read.
    """
    number = 0
    try:
        for number, line in _lines(unpacked(stream, key), max_bytes):
            if line is None:
                yield Rejected(f"{key}:{number}", "too_long", f"more than {max_bytes} bytes")
            else:
                yield number, line
    except UNPACKING as error:
        if of_the_disk(error):
            raise
        detail = f"from here on: {type(error).__name__}: {error}"
        yield Rejected(f"{key}:{number + 1}", "truncated", detail[:200])


def unpacked(stream: BinaryIO, key: str) -> io.BufferedIOBase:
    """What a packed file holds, as its key's ending says how; any other as it is.

    Raises:
        EOFError: A packed file without a byte. The libraries take it for the end of one.
    """
    if key.endswith((".gz", ".zst")):
        if not stream.read(1):
            raise EOFError("the file is empty; packing nothing gives some bytes")
        stream.seek(0)
    if key.endswith(".gz"):
        return gzip.GzipFile(fileobj=stream, mode="rb")
    if key.endswith(".zst"):
        import pyarrow as pa

        packed = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return io.BufferedReader(packed, buffer_size=1 << 20)
    return cast("io.BufferedIOBase", stream)


def of_the_disk(error: BaseException) -> bool:
    """Whether the system failed to read, which says nothing of the file: libraries' own errors have no number."""
    return isinstance(error, OSError) and bool(error.errno)


def _lines(file: io.BufferedIOBase, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    number, most = 0, max_bytes + len(BYTE_ORDER_MARK)
    while line := file.readline(most + 2):
        number, most = number + 1, max_bytes
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(content) > max_bytes:
            while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                pass
            yield number, None
        elif content.strip():
            yield number, content
