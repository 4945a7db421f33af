"""Perceptual hashes that differ in few bits, found without comparing all with all.

Bits are put into more blocks than may differ: hashes that are near have so many blocks in common, and only
those that share that many blocks are compared (the pigeonhole principle).
Axes: n = hashes.
"""

import itertools
import math

import numpy as np
from jaxtyping import Bool, Int64, UInt64

_MOST_SHARED = 6


def later_near(hashes: UInt64[np.ndarray, " n"], bits: int) -> Bool[np.ndarray, " n"]:
    """Those that differ in at most `bits` bits from one that stands before them."""
    found = np.ones(len(hashes), bool)
    # Equal ones first: they would be in the same block however many there are.
    distinct, first = np.unique(hashes, return_index=True)
    found[first] = False
    if not bits or len(distinct) < 2:
        return found
    for mask in _masks(bits, len(distinct)):
        key = distinct & mask
        order = np.argsort(key)
        key, sorted_hashes, places = key[order], distinct[order], first[order]
        at = np.flatnonzero(key[1:] == key[:-1])
        distance = 1
        while len(at):
            near = at[_are_near(sorted_hashes[at], sorted_hashes[at + distance], bits)]
            found[np.maximum(places[near], places[near + distance])] = True
            distance += 1
            at = at[at + distance < len(key)]
            at = at[key[at + distance] == key[at]]
    return found


class NearIndex:
    """A set of hashes that others are compared with."""

    def __init__(self, hashes: UInt64[np.ndarray, " n"], bits: int) -> None:
        distinct = np.unique(hashes)
        self._bits = bits
        self._tables: list[
            tuple[np.uint64, UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]
        ] = []
        for mask in _masks(bits, len(distinct)) if len(distinct) else []:
            order = np.argsort(distinct & mask)
            self._tables.append((mask, (distinct & mask)[order], distinct[order]))

    def near(self, hashes: UInt64[np.ndarray, " q"]) -> Bool[np.ndarray, " q"]:
        """Those that differ in at most the set's bits from one of the set."""
        found = np.zeros(len(hashes), bool)
        for mask, keys, members in self._tables:
            wanted = hashes & mask
            at: Int64[np.ndarray, " q"] = np.searchsorted(keys, wanted)
            open_ = np.arange(len(hashes))
            while len(open_):
                inside = at[open_] < len(keys)
                open_ = open_[inside]
                open_ = open_[keys[at[open_]] == wanted[open_]]
                found[open_] |= _are_near(members[at[open_]], hashes[open_], self._bits)
                at[open_] += 1
        return found


def _are_near(
    a: UInt64[np.ndarray, " n"], b: UInt64[np.ndarray, " n"], bits: int
) -> Bool[np.ndarray, " n"]:
    return np.bitwise_count(a ^ b) <= bits


def _masks(bits: int, number: int) -> list[np.uint64]:
    """Bits that near hashes have in common in at least one case each, as cheap as can be for so many hashes."""

    def cost(shared: int) -> float:
        same = number / 2.0 ** (64 * shared / (bits + shared))
        return math.comb(bits + shared, shared) * (math.log2(number + 1) + same)

    shared = min(range(1, _MOST_SHARED + 1), key=cost)
    edges = [64 * i // (bits + shared) for i in range(bits + shared + 1)]
    blocks = [
        sum(1 << bit for bit in range(start, end)) for start, end in itertools.pairwise(edges)
    ]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(blocks, shared)]
