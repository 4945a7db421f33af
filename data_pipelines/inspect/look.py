"""A first look at raw input: what files there are, and the columns of one of them. Little is read."""

import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from posixpath import basename, splitext
from typing import Any, Literal, TypeVar

from data_pipelines.documents import Rejected
from data_pipelines.sources.image_folder import IMAGE_SUFFIXES, METADATA_NAMES
from data_pipelines.sources.places import Place, RawFile, open_place
from data_pipelines.sources.row_files import JSONL_SUFFIXES, PARQUET_SUFFIXES, Row, read_rows
from transfusion.errors import ArtifactError

TAR_SUFFIXES = (".tar",)
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")

T = TypeVar("T")

_NUM_ROWS = 64
_NUM_MEMBERS = 400
_CSV_BYTES = 1 << 20

Kind = Literal["image", "image_name", "images", "text", "texts", "image_infos", "scalar", "other"]
"""What a column may be good for, judged by its values."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of rows, a key of JSON objects, or an ending of a tar's members."""

    name: str
    type: str
    kind: Kind
    example: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen."""

    path: str
    place: Place
    keys: Sequence[str]
    endings: Mapping[str, int]
    """How many files have each ending."""
    columns_of: str = ""
    """The file whose columns these are; empty when none was looked into."""
    columns: Sequence[Column] = ()
    members: Mapping[str, int] = field(default_factory=dict)
    """Of the first members of a tar, how many have each ending."""
    rows: Sequence[Mapping[str, Any]] = ()

    def having(self, suffixes: Sequence[str]) -> list[str]:
        """The files with one of these endings."""
        return [key for key in self.keys if key.lower().endswith(tuple(suffixes))]

    def of_kind(self, *kinds: Kind) -> list[str]:
        """The names of the columns of these kinds."""
        return [column.name for column in self.columns if column.kind in kinds]


def look_at(path: str) -> Look:
    """Lists the files, and reads the head of one that has columns.

    Raises:
        ArtifactError: Nothing is there, or the file cannot be read.
    """
    place = open_place(path, where="inspect")
    keys = place.keys()
    if not keys:
        raise ArtifactError(f"{path}: holds no file")
    endings = Counter(ending(key) for key in keys)
    look = Look(path=path, place=place, keys=keys, endings=dict(endings.most_common()))
    for suffixes in (TAR_SUFFIXES, METADATA_NAMES, PARQUET_SUFFIXES, JSONL_SUFFIXES):
        found = look.having(suffixes)
        if found:
            return _into(look, found[0])
    return look


def ending(key: str) -> str:
    """The ending that says the format, with that of the packing."""
    stem, last = splitext(basename(key).lower())
    inner = splitext(stem)[1]
    return f"{inner}{last}" if last in (".gz", ".zst", ".xz", ".bz2") and inner else last


def marked(place: Place, key: str) -> RawFile:
    """One file with its mark.

    Raises:
        ArtifactError: It cannot be read.
    """
    (file,) = place.marked([key])
    if not isinstance(file, RawFile):
        raise ArtifactError(f"{place.url}/{key}: cannot be read: {file[1]}")
    return file


def _into(look: Look, key: str) -> Look:
    members: Counter[str] = Counter()
    types: Mapping[str, str] = {}
    rows: list[Mapping[str, Any]]
    if key.endswith(TAR_SUFFIXES):
        rows, members = _tar_head(look.place, key)
    elif key.endswith(".csv"):
        rows = csv_head(look.place, key, num_rows=_NUM_ROWS)
    else:
        types, rows = _rows_head(look.place, key)
    names = dict.fromkeys([*types, *(name for row in rows for name in row if name is not None)])
    columns = [_column(name, [row.get(name) for row in rows], types.get(name)) for name in names]
    return Look(
        path=look.path,
        place=look.place,
        keys=look.keys,
        endings=look.endings,
        columns_of=key,
        columns=columns,
        members=dict(members.most_common()),
        rows=rows,
    )


def _rows_head(place: Place, key: str) -> tuple[dict[str, str], list[Mapping[str, Any]]]:
    file = marked(place, key)
    types: dict[str, str] = {}
    if key.endswith(PARQUET_SUFFIXES):
        from data_pipelines.sources.parquet_rows import column_types

        with place.open(key, file.mark) as stream:
            types = column_types(stream, url=f"{place.url}/{key}")
    rows = read_rows(place, key, file.mark, columns=list(types))
    head = [row for row in islice(rows, _NUM_ROWS) if isinstance(row, Row | Rejected)]
    return types, [row.values for row in head if isinstance(row, Row)]


def csv_head(place: Place, key: str, *, num_rows: int) -> list[Mapping[str, Any]]:
    """The first rows of a CSV file, as far as they can be read."""
    text = place.peek(key, _CSV_BYTES).decode("utf-8-sig", "replace")
    rows: list[Mapping[str, Any]] = []
    with suppress(csv.Error):  # the source says so when it reads the sample
        rows.extend(islice(csv.DictReader(io.StringIO(text, newline="")), num_rows))
    return rows


def _tar_head(place: Place, key: str) -> tuple[list[Mapping[str, Any]], "Counter[str]"]:
    """The JSON objects among the first members, and how many members have each ending."""
    endings: Counter[str] = Counter()
    rows: list[Mapping[str, Any]] = []
    with place.open(key, marked(place, key).mark) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in islice(tar, _NUM_MEMBERS):
                    name = basename(member.name)
                    suffix = name[name.find(".") :].lower() if "." in name else ""
                    endings[suffix] += member.isfile()
                    if suffix == ".json" and member.size < _CSV_BYTES and len(rows) < _NUM_ROWS:
                        content = tar.extractfile(member)
                        rows += _json_object(content.read() if content else b"")
        except (tarfile.TarError, EOFError) as error:
            if not endings:
                raise ArtifactError(f"{place.url}/{key}: is no readable tar: {error}") from error
    return rows, endings


def _json_object(data: bytes) -> list[Mapping[str, Any]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # the source says so when it reads the sample
        return []
    return [value] if isinstance(value, dict) else []


def _column(name: str, values: Sequence[Any], type_: str | None) -> Column:
    present = [value for value in values if value is not None]
    if type_ is None:
        type_ = " | ".join(dict.fromkeys(_type(value) for value in values)) or "null"
    kinds = Counter(_kind(value) for value in present)
    kind = kinds.most_common(1)[0][0] if kinds else "other"
    return Column(name, type_, kind, _shown(present[0]) if present else "null")


def _type(value: Any) -> str:
    if isinstance(value, list):
        inner = sorted({_type(item) for item in value})
        return f"list<{' | '.join(inner)}>"
    return {"NoneType": "null", "dict": "object"}.get(type(value).__name__, type(value).__name__)


def _kind(value: Any) -> Kind:
    if isinstance(value, bytes) or (isinstance(value, Mapping) and {"bytes", "path"} <= set(value)):
        return "image"
    if isinstance(value, str):
        return "image_name" if _names_image(value) else "text"
    if isinstance(value, bool | int | float):
        return "scalar"
    if isinstance(value, list):
        return _kind_of_list([item for item in value if item is not None])
    return "other"


def _kind_of_list(items: Sequence[Any]) -> Kind:
    if any(isinstance(item, Mapping) and "matched_text_index" in item for item in items):
        return "image_infos"
    kinds = {_kind(item) for item in items}
    if kinds & {"image", "image_name"}:
        return "images"
    return "texts" if kinds == {"text"} else "other"


def _names_image(value: str) -> bool:
    place = value.partition("?")[0].lower()
    return place.endswith(IMAGE_SUFFIXES) and len(value) < 2048 and "\n" not in value


def _shown(value: Any, most: int = 60) -> str:
    """A value on one line."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name}: {_shown(item, 24)}" for name, item in islice(value.items(), 4))
        return f"{{{inner}}}"[:most]
    if isinstance(value, list):
        return f"[{', '.join(_shown(item, 24) for item in value[:3])}{', ...' * (len(value) > 3)}]"[
            :most
        ]
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most so many of the items: the first, the last, and evenly between."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / max(1, count - 1)
    return [items[round(index * step)] for index in range(count)]


def counted(count: int, what: str) -> str:
    """`1 file`, `1,024 files`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in a line of prose."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
