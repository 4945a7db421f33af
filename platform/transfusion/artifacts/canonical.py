"""Canonical JSON and the digests taken over it."""

import hashlib
import json
import math
from typing import Any

from transfusion.errors import SpecError


def canonical_json(value: Any) -> str:
    """The one spelling of a plain JSON value: sorted keys, no spaces.

    Raises:
        SpecError: The value holds something that is not plain JSON; it is refused, never stringified,
            because a changed `repr` would silently re-key everything made with it.
    """
    _check(value, "")
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any) -> str:
    """The sha256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def _check(value: Any, place: str) -> None:
    if value is None or isinstance(value, bool | int | str):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(
                f"{place or 'value'}: {value} has no place in an identity; use a finite number"
            )
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{place}[{index}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise SpecError(f"{place or 'value'}: the key {key!r} is not a string")
            _check(item, f"{place}.{key}" if place else key)
        return
    raise SpecError(
        f"{place or 'value'}: a {type(value).__name__} is not plain JSON and cannot be part of an identity"
    )
