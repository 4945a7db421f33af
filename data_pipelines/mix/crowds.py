"""Compares hashes that share blocks of bits; where a crowd shares them, in a number of steps that is bounded.

Axes: n = hashes; m = places of those that share bits, in their order; k = places that are
still open, o = after some comparisons.
"""

import itertools
import math

import numpy as np
from jaxtyping import Bool, Int64, UInt64

BUCKET = 1024
"""As many with the same bits are compared all with all."""

ALL_BITS = 2**64 - 1

_MOST_SHARED = 6
_FIRST = 64
"""Of a crowd, those that all others are compared with first: where many look alike, few are left after that."""
_REFINEMENTS = 2
_COMPARISONS_A_HASH = 2**14
"""As long as they were fewer, a crowd is parted by further bits."""
_PORTION = 2**16
"""Hashes whose comparisons stay in the processor's cache."""
_SPARSE = 8
"""Where fewer than one in so many has a partner, those that have are picked out."""


class Comparing:
    """Finds, of hashes in order, those that differ in few bits from an earlier one, and counts what it took.

    A crowd, more than `BUCKET` with the same bits, is compared with its first ones; what is still open, with all
    of them if that is no more than `BUCKET`; else the crowd is parted again by blocks of its other bits, which
    misses nothing either. Only a crowd that is one still after `_REFINEMENTS` times, or when
    `_COMPARISONS_A_HASH` are used up, is compared with its first `BUCKET` alone: of those hashes, near ones that
    came later than these may be missed. That takes thousands of pictures that look somewhat alike and of which
    no two are near.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self.made = 0
        """Comparisons of two hashes."""
        self.asked = 0
        """Hashes for which a near one was looked for."""
        self.not_with_all = 0
        """Of those asked, in which none was found, and that were not compared with all that share their bits."""

    def later(self, hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Those near one before them."""
        return self._search(hashes, np.zeros(len(hashes), bool), len(hashes))

    def near_any(
        self, known: UInt64[np.ndarray, " m"], hashes: UInt64[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Those near one of the known."""
        found = np.arange(len(known) + len(hashes)) < len(known)
        return self._search(np.concatenate([known, hashes]), found, len(known))[len(known) :]

    def _search(
        self, hashes: UInt64[np.ndarray, " n"], found: Bool[np.ndarray, " n"], known: int
    ) -> Bool[np.ndarray, " n"]:
        self.asked += int((~found).sum())
        self._most = self.made + _COMPARISONS_A_HASH * len(hashes)
        unsure = np.zeros(len(hashes), bool)
        if self._bits:
            self._mark(hashes, found, unsure, known, ALL_BITS, _REFINEMENTS)
        self.not_with_all += int((unsure & ~found).sum())
        return found

    def _mark(
        self,
        hashes: UInt64[np.ndarray, " n"],
        found: Bool[np.ndarray, " n"],
        unsure: Bool[np.ndarray, " n"],
        known: int,
        bits: int,
        refinements: int,
    ) -> None:
        """Marks in `found` those near one that stands before them and among the first `known`.

        Args:
            found: Those that already are in it are only compared with.
            unsure: Gets those that were not compared with all.
            bits: In which the hashes may differ.
        """
        if known and len(hashes) > 1:
            # Bits that all have alike part nobody.
            bits &= int(np.bitwise_or.reduce(hashes ^ hashes[0]))
            for mask in masks(self._bits, len(hashes), bits):
                order = np.argsort(hashes & mask)
                order, crowds = _parted(order, hashes[order] & mask)
                self._compare_buckets(hashes, found, order, mask, known)
                for crowd in crowds:
                    crowd.sort()
                    left = bits & ~int(mask)
                    self._compare_crowd(hashes, found, unsure, crowd, known, left, refinements)

    def _compare_buckets(
        self,
        hashes: UInt64[np.ndarray, " n"],
        found: Bool[np.ndarray, " n"],
        order: Int64[np.ndarray, " m"],
        mask: np.uint64,
        known: int,
    ) -> None:
        """Each with those behind it in its bucket, at one distance after the other.

        Args:
            order: Places, one bucket after the other.
        """
        in_order = hashes[order]
        keys = in_order & mask
        for first in range(0, len(order), _PORTION):
            distance = 0
            at = np.arange(first, min(first + _PORTION, len(order)))
            while len(at):
                distance += 1
                last = min(int(at[-1]) + 1, len(order) - distance)
                if len(at) * _SPARSE > last - first:
                    # Faster as slices: what is near is near, in the same bucket or not.
                    here, there = slice(first, last), slice(first + distance, last + distance)
                    near = first + np.flatnonzero(self._are_near(in_order[here], in_order[there]))
                    at = first + np.flatnonzero(keys[here] == keys[there])
                else:
                    at = at[at < last]
                    at = at[keys[at] == keys[at + distance]]
                    near = at[self._are_near(in_order[at], in_order[at + distance])]
                a, b = order[near], order[near + distance]
                found[np.maximum(a, b)[np.minimum(a, b) < known]] = True

    def _compare_crowd(
        self,
        hashes: UInt64[np.ndarray, " n"],
        found: Bool[np.ndarray, " n"],
        unsure: Bool[np.ndarray, " n"],
        crowd: Int64[np.ndarray, " m"],
        known: int,
        bits: int,
        refinements: int,
    ) -> None:
        """All with its first ones; those that are then open with all, or by the bits that are left."""
        num_known = int(np.searchsorted(crowd, known))
        first = min(_FIRST, num_known)
        open_ = self._compare_with(crowd[:first], hashes, found, crowd[~found[crowd]])
        is_parted = num_known > BUCKET and refinements > 0 and self.made < self._most
        if len(open_) > BUCKET and not is_parted:
            first = min(BUCKET, num_known)
            open_ = self._compare_with(crowd[_FIRST:first], hashes, found, open_)
        if first == num_known:
            return
        if len(open_) <= BUCKET:
            for place in open_.tolist():
                end = min(num_known, int(np.searchsorted(crowd, place)))
                found[place] = self._are_near(hashes[crowd[first:end]], hashes[place]).any()
        elif is_parted:
            own, marked, doubts = hashes[crowd], found[crowd], unsure[crowd]
            self._mark(own, marked, doubts, num_known, bits, refinements - 1)
            found[crowd], unsure[crowd] = marked, doubts
        else:
            unsure[open_] = True

    def _compare_with(
        self,
        places: Int64[np.ndarray, " f"],
        hashes: UInt64[np.ndarray, " n"],
        found: Bool[np.ndarray, " n"],
        open_: Int64[np.ndarray, " k"],
    ) -> Int64[np.ndarray, " o"]:
        """Those of the open places that stand behind these and are near none of them."""
        for place in places.tolist():
            open_ = open_[int(len(open_) > 0 and open_[0] <= place) :]
            near = self._are_near(hashes[open_], hashes[place])
            found[open_[near]] = True
            open_ = open_[~near]
        return open_

    def _are_near(
        self, a: UInt64[np.ndarray, " n"], b: UInt64[np.ndarray, " n"] | np.uint64
    ) -> Bool[np.ndarray, " n"]:
        self.made += len(a)
        return are_near(a, b, self._bits)


def are_near(
    a: UInt64[np.ndarray, " n"], b: UInt64[np.ndarray, " n"] | np.uint64, bits: int
) -> Bool[np.ndarray, " n"]:
    """Whether they differ in no more bits."""
    return np.bitwise_count(a ^ b) <= bits


def masks(bits: int, number: int, within: int) -> list[np.uint64]:
    """Bits that near hashes have in common in at least one case each, as cheap as can be for so many hashes.

    Args:
        within: Bits in which the hashes differ at all.
    """
    there = [bit for bit in range(64) if within >> bit & 1]

    def cost(shared: int) -> float:
        same = number / 2.0 ** (len(there) * shared / (bits + shared))
        return math.comb(bits + shared, shared) * (math.log2(number + 1) + same)

    shared = min(range(1, _MOST_SHARED + 1), key=cost)
    edges = [len(there) * i // (bits + shared) for i in range(bits + shared + 1)]
    blocks = [sum(1 << bit for bit in there[start:end]) for start, end in itertools.pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(blocks, shared)]


def _parted(
    order: Int64[np.ndarray, " n"], keys: UInt64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " m"], list[Int64[np.ndarray, " _"]]]:
    """Places in buckets that are no crowd, and each crowd."""
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    crowds = np.flatnonzero(np.diff(edges) > BUCKET).tolist()
    if not crowds:
        return order, []
    found = [order[edges[i] : edges[i + 1]] for i in crowds]
    in_crowd = np.repeat(np.diff(edges) > BUCKET, np.diff(edges))
    return order[~in_crowd], found
