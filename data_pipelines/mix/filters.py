"""Filters on the columns of a shard's index.

Axes: d = documents of a shard.
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64

from data_pipelines.mix.conditions import BUILT_IN, Filter, Scalar
from transfusion.artifacts.tokens import META
from transfusion.config import suggestion
from transfusion.errors import ArtifactError
from transfusion.ingest.index import ShardIndex

_SIDES = {
    "width": ("original_width",),
    "height": ("original_height",),
    "short_side": ("original_width", "original_height"),
    "aspect": ("original_width", "original_height"),
}
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def columns_of(filters: Iterable[Filter]) -> list[str]:
    """The columns of the index tables from which filters are answered."""
    found: dict[str, None] = {}
    for condition in filters:
        if condition.column in _SIDES:
            found |= dict.fromkeys(_SIDES[condition.column])
        elif condition.column not in BUILT_IN:
            found[_stored(condition.column)] = None
    return list(found)


def check_columns(where: str, filters: Iterable[Filter], there: frozenset[str]) -> None:
    """Raises ArtifactError when a filter asks for a column that no shard has.

    Args:
        there: Columns that at least one shard of the source has.
    """
    for condition in filters:
        lacking = [name for name in columns_of([condition]) if name not in there]
        if not lacking:
            continue
        if condition.column in _SIDES:
            raise ArtifactError(
                f"{where}: {condition.column!r}: the source has no images with a known size"
            )
        known = [*BUILT_IN, *(n.removeprefix(META) for n in sorted(there) if n.startswith(META))]
        raise ArtifactError(
            f"{where}: no document has a column {condition.column!r}"
            f"{suggestion(condition.column, known)}; there are {', '.join(known)}"
        )


def passing(condition: Filter, index: ShardIndex) -> Bool[np.ndarray, " d"]:
    """The documents that a filter lets through."""
    column = _column(condition.column, index)
    holds = np.ones(len(column), bool)
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if condition.at_least is not None or condition.at_most is not None:
        numbers = _numbers(column)
        missing = np.isnan(numbers)
        if condition.at_least is not None:
            holds &= numbers >= condition.at_least
        if condition.at_most is not None:
            holds &= numbers <= condition.at_most
    if condition.equal is not None:
        holds &= _is_one_of(column, [condition.equal])
    if condition.one_of is not None:
        holds &= _is_one_of(column, condition.one_of)
    if condition.none_of is not None:
        holds &= ~_is_one_of(column, condition.none_of)
    if condition.matches is not None:
        try:
            found = pc.match_substring_regex(_texts(column), condition.matches)
        except pa.ArrowInvalid as error:
            raise ArtifactError(
                f"a filter on {condition.column!r}: {condition.matches!r} is no RE2 expression: {error}"
            ) from error
        holds &= _mask(found)
    return np.where(missing, condition.missing == "keep", holds)


def _stored(name: str) -> str:
    return name if name.startswith(META) else META + name


def _column(name: str, index: ShardIndex) -> pa.Array:
    if name == "key":
        return index.keys.combine_chunks()
    if name in ("text_tokens", "images"):
        return pa.array(getattr(index, name))
    if name in _SIDES:
        return _side(name, index)
    if _stored(name) not in index.tokens.column_names:
        return pa.nulls(len(index.images), pa.string())
    return index.tokens[_stored(name)].combine_chunks()


def _side(name: str, index: ShardIndex) -> pa.Array:
    sides = []
    for stored in _SIDES[name]:
        if index.latents is None or stored not in index.latents.column_names:
            return pa.nulls(len(index.images), pa.float64())
        rows = pa.array(index.first_image, mask=index.first_image < 0)
        sides.append(index.latents[stored].combine_chunks().take(rows).cast(pa.float64()))
    if name == "short_side":
        return pc.min_element_wise(*sides)
    return pc.divide(*sides) if name == "aspect" else sides[0]


def _numbers(column: pa.Array) -> Float64[np.ndarray, " d"]:
    """As numbers; NaN where there is none."""
    if pa.types.is_string(column.type):
        texts = pc.utf8_trim_whitespace(column)
        is_number = pc.match_substring_regex(texts, _NUMBER)
        column = pc.if_else(is_number, pc.utf8_ltrim(texts, "+"), None)
    return column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)


def _texts(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _is_one_of(column: pa.Array, values: Sequence[Scalar]) -> Bool[np.ndarray, " d"]:
    """Text and booleans are compared as text, numbers as numbers: shards differ in the types they have."""
    numbers = [
        value for value in values if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    texts = [
        v if isinstance(v, str) else json.dumps(v) for v in values if isinstance(v, bool | str)
    ]
    found = _mask(pc.is_in(_texts(column), pa.array(texts, pa.string())))
    whole = [value for value in numbers if isinstance(value, int) and abs(value) < 2**63]
    if pa.types.is_integer(column.type) and len(whole) == len(numbers):
        # Exact, where a float would mistake large ids for each other.
        return found | _mask(pc.is_in(column.cast(pa.int64()), pa.array(whole, pa.int64())))
    return found | np.isin(_numbers(column), np.array(numbers, np.float64))


def _mask(found: pa.Array) -> Bool[np.ndarray, " d"]:
    return found.fill_null(False).to_numpy(zero_copy_only=False)
