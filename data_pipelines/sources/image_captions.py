"""Captions of an image folder: from metadata files and from .txt files beside the images.

Files are called by their names on disk here (`files.path_of`), since metadata names them so.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from posixpath import dirname, join, normpath, splitext
from typing import Any

from data_pipelines.documents import Rejected
from data_pipelines.sources.cells import BadRow, metadata_of
from data_pipelines.sources.class_prompts import ClassPrompt
from data_pipelines.sources.files import key_of
from data_pipelines.sources.places import Place
from transfusion.config import JSON
from transfusion.errors import ArtifactError

MAX_CAPTION_BYTES = 1 << 20
"""A longer caption is no caption: `bad_caption`."""


class Captions:
    """What is said of each file, and what is wrong with the metadata."""

    def __init__(
        self,
        place: Place,
        names: Sequence[str],
        *,
        column: str,
        metadata: Sequence[str] = (),
        class_prompt: ClassPrompt | None = None,
    ) -> None:
        self.faults: list[Rejected] = []
        self._place = place
        self._files = set(names)
        self._rows: dict[str, str | Rejected | None] = {}
        self._metadata: dict[str, dict[str, JSON]] = {}
        self._columns = metadata
        self._prompt = class_prompt
        for name in names:
            if name.rsplit("/", 1)[-1] in _READERS:
                self._take(name, column)

    def named_files(self) -> set[str]:
        """Files that a metadata row names, whatever their ending."""
        return set(self._rows)

    def of(self, name: str) -> str | Rejected | None:
        """What a metadata row says of a file; None when none does; Rejected when it is no text."""
        return self._rows.get(name)

    def metadata_of(self, name: str) -> dict[str, JSON]:
        """What else a metadata row says of a file, of the columns that go along."""
        return self._metadata.get(name, {})

    def beside(self, name: str) -> str | None:
        """The .txt file beside a file, if there is one."""
        sidecar = f"{splitext(name)[0]}.txt"
        return sidecar if sidecar in self._files and sidecar != name else None

    def _take(self, metadata: str, column: str) -> None:
        folder = dirname(metadata)
        url = f"{self._place.url}/{key_of(metadata)}"
        try:
            data = self._place.peek(key_of(metadata))
        except OSError as error:
            raise ArtifactError(f"{url}: cannot be read: {error.strerror or error}") from error
        rows = _READERS[metadata.rsplit("/", 1)[-1]](data, url)
        for number, row in rows:
            where = f"{key_of(metadata)}:{number}"
            if isinstance(row, str):
                self.faults.append(Rejected(where, "bad_metadata", row))
                continue
            file_name = row.get("file_name")
            if not isinstance(file_name, str) or not file_name:
                names = ", ".join(map(str, row)).encode("utf-8", "backslashreplace").decode()
                self.faults.append(
                    Rejected(where, "bad_metadata", f"no 'file_name'; there are {names}"[:200])
                )
                continue
            name = normpath(join(folder, file_name))
            if self._columns and name not in self._rows:
                self._metadata[name] = metadata_of(row, self._columns)
            self._name(where, name, file_name, self._said(file_name, row.get(column), column))

    def _said(self, file_name: str, value: Any, column: str) -> Any:
        """The value, or the prompt that it stands for."""
        if self._prompt is None:
            return value
        try:
            return self._prompt.of(value, column=column)
        except BadRow as bad:
            return Rejected(file_name, bad.reason, bad.detail)

    def _name(self, where: str, name: str, shown: str, said: Any) -> None:
        shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")
        if name.startswith(("../", "/")) or name == "..":
            self.faults.append(Rejected(where, "outside_folder", shown))
        elif name not in self._files:
            self.faults.append(Rejected(where, "missing_file", shown))
        elif name in self._rows:
            self.faults.append(Rejected(where, "duplicate_key", f"{shown} has an earlier row"))
        elif said is None or isinstance(said, str):
            self._rows[name] = caption_of(said)
        elif isinstance(said, Rejected):
            self._rows[name] = said
        else:
            detail = f"{where}: the caption is a {type(said).__name__}"
            self._rows[name] = Rejected(shown, "bad_caption", detail)


def caption_in(data: bytes, *, name: str, sidecar: str) -> str | Rejected | None:
    """The caption that the .txt file beside a file holds; None for one that is empty.

    Args:
        data: What it holds, up to one byte more than a caption may have.
    """
    try:
        return caption_of(data.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return Rejected(name, "bad_caption", f"{key_of(sidecar)}: no UTF-8 at byte {error.start}")


def caption_of(caption: str | None) -> str | Rejected | None:
    """The caption as it is; None for one that is empty."""
    if caption is None or not caption.strip():
        return None
    try:
        size = len(caption.encode("utf-8"))
    except UnicodeEncodeError as error:
        return Rejected("", "bad_caption", f"half a surrogate pair at character {error.start}")
    if "\0" in caption:
        return Rejected("", "bad_caption", f"a NUL at character {caption.index(chr(0))}")
    if size > MAX_CAPTION_BYTES:
        return Rejected("", "bad_caption", f"more than {MAX_CAPTION_BYTES} bytes")
    return caption


Rows = Iterator[tuple[int, dict[str, Any] | str]]
"""Line or row numbers, each with the row or what is wrong with it."""


def _jsonl(data: bytes, url: str) -> Rows:
    del url
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            yield number, f"{type(error).__name__}: {error}"[:200]
            continue
        yield number, row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def _csv(data: bytes, url: str) -> Rows:
    del url
    text = data.decode("utf-8-sig", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, "another number of fields than the header has"
            else:
                yield reader.line_num, dict(row)
    except csv.Error as error:
        yield reader.line_num, f"from this line on: {error}"


def _parquet(data: bytes, url: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_pipelines.sources.parquet_rows import UNREADABLE

    try:
        rows = pq.read_table(pa.BufferReader(data), page_checksum_verification=True).to_pylist()
    except (*UNREADABLE, OSError) as error:
        raise ArtifactError(f"{url}: is no readable Parquet file: {error}") from error
    yield from enumerate(rows)


_READERS = {"metadata.jsonl": _jsonl, "metadata.csv": _csv, "metadata.parquet": _parquet}
