"""What takes part once, whatever source it is in, and what is held out in any source, in none.

Axes: n = documents of all sources, one source after the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt64

from data_pipelines.mix.candidates import Candidates
from data_pipelines.mix.documents import Documents
from data_pipelines.mix.near import later_near


@dataclass(frozen=True, kw_only=True)
class SourceDocuments:
    """What became of the documents of a source."""

    training: Documents
    validation: Documents
    num_documents: int
    filtered: Mapping[str, int]
    rejects: pa.Table
    num_shards: int


def settle(
    candidates: Mapping[str, Candidates],
    *,
    deduplicate: Literal["none", "exact", "near"],
    near_bits: int,
) -> dict[str, SourceDocuments]:
    """Takes duplicates away and parts training from validation.

    Of duplicates the first stays, by source and place; one that is held out comes before all others, so that
    nothing is trained on that looks like it.
    """
    parts = list(candidates.values())
    is_held_out = _column(parts, "is_held_out")
    away: dict[str, Bool[np.ndarray, " n"]] = {}
    if deduplicate != "none":
        left = np.ones(len(is_held_out), bool)
        order = np.argsort(~is_held_out, kind="stable")
        away["duplicate"] = _in_order(_later_equal, _column(parts, "content"), order)
        left &= ~away["duplicate"]
        if deduplicate == "near":
            hashed = order[(left & _column(parts, "has_phash"))[order]]
            away["near_duplicate"] = _in_order(
                lambda hashes: later_near(hashes, near_bits), _column(parts, "phash"), hashed
            )
    elsewhere = _held_out_elsewhere(parts, is_held_out)
    inside = _shares_an_image(parts, is_held_out)
    if elsewhere is not None or inside is not None:
        none = np.zeros(len(is_held_out), bool)
        away["held_out"] = (none if elsewhere is None else elsewhere) | (
            none if inside is None else inside
        )
    return _parted(candidates, is_held_out, away)


def _held_out_elsewhere(
    parts: list[Candidates], is_held_out: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"] | None:
    """What one source trains on and another, which holds out more, is validated on."""
    if len(parts) < 2:
        return None
    numbers = _column(parts, "held_out_number")
    # The same fraction everywhere parts the numbers alike, and there is nothing to look for.
    kept = numbers[~is_held_out]
    if not len(kept) or not is_held_out.any() or numbers[is_held_out].max() < kept.min():
        return None
    suspects = numbers[is_held_out]
    return ~is_held_out & np.isin(numbers, suspects[suspects >= kept.min()])


def _shares_an_image(
    parts: list[Candidates], is_held_out: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"] | None:
    """What has any image in common with a held-out document, where either has several."""
    firsts = np.cumsum([0, *(len(part.is_held_out) for part in parts)])
    images = _column(parts, "later_images")
    if not len(images) or not is_held_out.any():
        return None
    owners = np.concatenate(
        [part.later_owner + first for part, first in zip(parts, firsts[:-1], strict=True)]
    )
    numbers = _column(parts, "held_out_number")
    later = images[is_held_out[owners]]
    found = np.isin(numbers, later)
    found[owners[np.isin(images, np.concatenate([numbers[is_held_out], later]))]] = True
    return found & ~is_held_out


def _parted(
    candidates: Mapping[str, Candidates],
    is_held_out: Bool[np.ndarray, " n"],
    away: Mapping[str, Bool[np.ndarray, " n"]],
) -> dict[str, SourceDocuments]:
    found = {}
    first = 0
    for name, part in candidates.items():
        mine = slice(first, first + len(part.is_held_out))
        first = mine.stop
        left = np.ones(mine.stop - mine.start, bool)
        filtered = dict(part.filtered)
        for reason, gone in away.items():
            filtered[reason] = filtered.get(reason, 0) + int((left & gone[mine]).sum())
            left &= ~gone[mine]
        held = is_held_out[mine] & left
        filtered["held_out"] = filtered.get("held_out", 0) + int(held.sum())
        documents = part.documents
        found[name] = SourceDocuments(
            training=documents.select(documents.of(left & ~held)),
            validation=documents.select(documents.of(held)),
            num_documents=part.num_documents,
            filtered={reason: count for reason, count in filtered.items() if count},
            rejects=part.rejects,
            num_shards=part.num_shards,
        )
    return found


def _in_order(
    find: Callable[[UInt64[np.ndarray, " k"]], Bool[np.ndarray, " k"]],
    values: UInt64[np.ndarray, " n"],
    order: Int64[np.ndarray, " k"],
) -> Bool[np.ndarray, " n"]:
    """What `find` finds among the values in that order, by the places of the values."""
    found = np.zeros(len(values), bool)
    found[order] = find(values[order])
    return found


def _later_equal(values: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    found = np.ones(len(values), bool)
    found[np.unique(values, return_index=True)[1]] = False
    return found


def _column(parts: list[Candidates], name: str) -> np.ndarray:
    return np.concatenate([getattr(part, name) for part in parts])
