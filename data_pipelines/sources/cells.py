"""Values of rows as parts of documents: text, image, key, metadata; or the reason why not.

Text is kept as it is. It is refused when it is no UTF-8 (`invalid_utf8`), holds a NUL (`nul_character`) or half
a surrogate pair (`lone_surrogate`), or is no text at all.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple

from data_pipelines.documents import Image
from transfusion.config import JSON

MAX_TEXT_BYTES = 10 * 2**20
"""Longest text of a segment, in bytes of UTF-8."""

_MAX_KEY_BYTES = 1024
_INT64 = 2**63


class Named(NamedTuple):
    """An image of which a row gives only the name: a path, a file name or a URL."""

    name: str


class BadRow(Exception):  # noqa: N818 it is an outcome, not a fault of the program
    """The row cannot be used; `reason` is a fixed word to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def text_of(value: Any, *, column: str, otherwise: str = "not_text") -> str:
    """A value as text.

    Args:
        otherwise: The reason when the value is null or no string.

    Raises:
        BadRow: It is no text.
    """
    if value is None:
        raise BadRow(otherwise, f"{column!r} is null")
    if not isinstance(value, str):
        raise BadRow(otherwise, f"{column!r} is a {type(value).__name__}")
    try:
        size_bytes = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadRow("lone_surrogate", f"{column!r}: at character {error.start}") from error
    if "\0" in value:
        raise BadRow("nul_character", f"{column!r}: at character {value.index(chr(0))}")
    if size_bytes > MAX_TEXT_BYTES:
        raise BadRow("too_long", f"{column!r}: {size_bytes} bytes; at most {MAX_TEXT_BYTES}")
    return value


def image_of(value: Any, *, column: str, name: str) -> Image | Named:
    """Image bytes, plain or as the `{bytes, path}` of Hugging Face `datasets`; without bytes the path is a name.

    Args:
        name: What to call it where the row has no path for it.

    Returns:
        The image, or the name of its file, empty where there is neither.

    Raises:
        BadRow: `image_not_bytes`.
    """
    path = None
    if isinstance(value, Mapping) and "bytes" in value:
        value, path = value["bytes"], value.get("path")
        if value is None and isinstance(path, str):
            value = path
    if value is None or value == b"":
        return Named("")
    if isinstance(value, str):
        return Named(value)
    if not isinstance(value, bytes):
        raise BadRow("image_not_bytes", f"{column!r} is a {type(value).__name__}")
    return Image(value, path if isinstance(path, str) and path else name)


def key_of_row(value: Any, *, column: str) -> str:
    """The key that a row gives itself: a string or an integer.

    Raises:
        BadRow: `bad_key`: null, empty, longer than 1,024 bytes or of another type.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < _INT64 else _bad_key(column, "beyond 64 bits")
    if not isinstance(value, str):
        return _bad_key(column, "null" if value is None else f"a {type(value).__name__}")
    try:
        size_bytes = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        return _bad_key(column, "no UTF-8")
    if not 0 < size_bytes <= _MAX_KEY_BYTES or "\0" in value:
        return _bad_key(column, f"{size_bytes} bytes, or with a NUL")
    return value


def _bad_key(column: str, found: str) -> str:
    raise BadRow("bad_key", f"{column!r} is {found}")


def metadata_of(values: Mapping[str, Any], columns: Iterable[str]) -> dict[str, JSON]:
    """Columns of a row as plain scalars.

    Lists and mappings become JSON text, dates and times ISO text. Null, bytes, NaN, infinity, integers beyond 64
    bits and text that is no UTF-8 are left out.
    """
    found = {name: _scalar(values.get(name)) for name in columns}
    return {name: value for name, value in found.items() if value is not None}


def _scalar(value: Any) -> bool | int | float | str | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal | date | datetime | time):
        return str(value) if isinstance(value, Decimal) else value.isoformat()
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # bytes, dates or NaN inside
            return None
    if not isinstance(value, str):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value
