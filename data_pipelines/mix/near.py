"""Perceptual hashes that differ in few bits, found without comparing all with all.

Bits are put into more blocks than may differ: hashes that are near have so many blocks in common, and only
those that share that many blocks are compared (the pigeonhole principle).
Axes: n = hashes.
"""

import logging

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from data_pipelines.mix.crowds import ALL_BITS, BUCKET, Comparing, are_near, masks

_log = logging.getLogger("transfusion.job.mix")


def later_near(
    hashes: UInt64[np.ndarray, " n"], bits: int, comparing: Comparing | None = None
) -> Bool[np.ndarray, " n"]:
    """Those that differ in at most `bits` bits from one that stands before them.

    All of them, but for what `Comparing` says of crowds; then a warning counts them.

    Args:
        comparing: Where what it took is counted; of the same `bits`.
    """
    comparing = comparing or Comparing(bits)
    found = np.ones(len(hashes), bool)
    # Equal ones first: they would be in the same block however many there are.
    first = np.unique(hashes, return_index=True)[1]
    first.sort()
    found[first] = comparing.later(hashes[first])
    _warn(comparing)
    return found


class NearIndex:
    """A set of hashes that others are compared with."""

    def __init__(self, hashes: UInt64[np.ndarray, " n"], bits: int) -> None:
        self._distinct, self._bits, self._has_warned = np.unique(hashes), bits, False
        self._tables: list[
            tuple[np.uint64, UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]
        ] = []
        self._crowded: list[UInt64[np.ndarray, " c"]] = []
        number = len(self._distinct)
        for mask in masks(bits, number, ALL_BITS) if number else []:
            order = np.argsort(self._distinct & mask)
            keys = (self._distinct & mask)[order]
            found, counts = np.unique(keys, return_counts=True)
            crowded = found[counts > BUCKET]
            alone = np.repeat(counts <= BUCKET, counts)
            self._crowded.append(crowded)
            self._tables.append((mask, keys[alone], self._distinct[order[alone]]))

    def near(
        self, hashes: UInt64[np.ndarray, " q"], comparing: Comparing | None = None
    ) -> Bool[np.ndarray, " q"]:
        """Those that differ in at most the set's bits from one of the set."""
        comparing = comparing or Comparing(self._bits)
        found, crowded = np.zeros(len(hashes), bool), np.zeros(len(hashes), bool)
        for (mask, keys, members), crowds in zip(self._tables, self._crowded, strict=True):
            wanted = hashes & mask
            if len(crowds):
                crowded |= np.isin(wanted, crowds)
            at: Int64[np.ndarray, " q"] = np.searchsorted(keys, wanted)
            open_ = np.flatnonzero(~found)
            while len(open_):
                inside = at[open_] < len(keys)
                open_ = open_[inside]
                open_ = open_[keys[at[open_]] == wanted[open_]]
                near = are_near(members[at[open_]], hashes[open_], self._bits)
                comparing.made += len(open_)
                found[open_[near]] = True
                open_ = open_[~near]
                at[open_] += 1
        left = np.flatnonzero(crowded & ~found)
        if len(left):
            found[left] = comparing.near_any(self._distinct, hashes[left])
            if not self._has_warned:
                self._has_warned = _warn(comparing)
        return found


def _warn(comparing: Comparing) -> bool:
    if comparing.not_with_all:
        _log.warning(
            "%d of %d perceptual hashes look like so many others that they were compared with %d of these "
            "at a time only: some of their near duplicates may have stayed; lower near_bits, or filter what "
            "looks alike",
            comparing.not_with_all,
            comparing.asked,
            BUCKET,
        )
    return bool(comparing.not_with_all)
