"""Hashes that are near: none is missed, and a crowd of look-alikes costs in proportion to its size."""

import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, UInt64

from data_pipelines.mix import crowds, near
from data_pipelines.mix.crowds import Comparing
from data_pipelines.mix.near import NearIndex, later_near

Hashes = UInt64[np.ndarray, " n"]


def look_alikes(rng: np.random.Generator, number: int, flipped: int) -> Hashes:
    """One hash with that many of its bits turned over, others each time."""
    bits = np.argsort(rng.random((number, 64)), axis=1)[:, :flipped].astype(np.uint64)
    turned = np.bitwise_xor.reduce(np.uint64(1) << bits, axis=1)
    return rng.integers(0, 2**64, dtype=np.uint64) ^ turned


def shuffled(rng: np.random.Generator, *parts: Hashes) -> Hashes:
    return rng.permutation(np.concatenate(parts))


def near_one_before(hashes: Hashes, bits: int) -> Bool[np.ndarray, " n"]:
    return np.array(
        [(np.bitwise_count(hashes[:i] ^ hashes[i]) <= bits).any() for i in range(len(hashes))]
    )


def near_any(known: Hashes, hashes: Hashes, bits: int) -> Bool[np.ndarray, " n"]:
    return np.array([(np.bitwise_count(known ^ value) <= bits).any() for value in hashes])


@pytest.mark.parametrize("bits", [1, 2, 6, 8])
@pytest.mark.parametrize("flipped", [4, 6, 8, 12])
def test_in_crowds_too_none_is_missed_and_none_is_made_up(bits: int, flipped: int) -> None:
    rng = np.random.default_rng(flipped)
    scattered = rng.integers(0, 2**64, 500, dtype=np.uint64)
    hashes = shuffled(rng, look_alikes(rng, 4000, flipped), scattered)
    comparing = Comparing(bits)
    assert (later_near(hashes, bits, comparing) == near_one_before(hashes, bits)).all()
    assert comparing.not_with_all == 0
    index, looked_for = NearIndex(hashes[:3000], bits), hashes[3000:]
    comparing = Comparing(bits)
    found = index.near(looked_for, comparing)
    assert (found == near_any(hashes[:3000], looked_for, bits)).all()
    assert comparing.not_with_all == 0


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bits=st.integers(1, 8),
    flipped=st.integers(1, 20),
    refinements=st.integers(0, 3),
    bucket=st.sampled_from([4, 16, 64]),
)
def test_what_a_crowd_hides_is_counted(
    seed: int, bits: int, flipped: int, refinements: int, bucket: int
) -> None:
    rng = np.random.default_rng(seed)
    hashes = shuffled(
        rng, look_alikes(rng, 300, flipped), rng.integers(0, 2**64, 50, dtype=np.uint64)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crowds, "BUCKET", bucket)
        patch.setattr(near, "BUCKET", bucket)
        patch.setattr(crowds, "_FIRST", 2)
        patch.setattr(crowds, "_REFINEMENTS", refinements)
        for wanted, (found, comparing) in (
            (near_one_before(hashes, bits), searched(hashes, bits)),
            (near_any(hashes[:200], hashes[200:], bits), indexed(hashes, bits)),
        ):
            assert not (found & ~wanted).any()
            assert (wanted & ~found).sum() <= comparing.not_with_all


def searched(hashes: Hashes, bits: int) -> tuple[Bool[np.ndarray, " n"], Comparing]:
    comparing = Comparing(bits)
    return later_near(hashes, bits, comparing), comparing


def indexed(hashes: Hashes, bits: int) -> tuple[Bool[np.ndarray, " q"], Comparing]:
    comparing = Comparing(bits)
    return NearIndex(hashes[:200], bits).near(hashes[200:], comparing), comparing


@pytest.mark.parametrize("kind", ["near each other", "far from each other", "half the same"])
def test_a_hundred_thousand_look_alikes_are_compared_with_few_each(kind: str) -> None:
    """All with all would be 50,000 each; blocks alone are 127,000 where four bits of 64 are turned over."""
    rng = np.random.default_rng(0)
    if kind == "half the same":
        hashes = rng.integers(0, 2**32, 100_000).astype(np.uint64)
    else:
        hashes = look_alikes(rng, 100_000, 4 if kind == "near each other" else 16)
    comparing = Comparing(6)
    later_near(hashes, 6, comparing)
    assert comparing.made < 4_000 * len(hashes)
    assert comparing.not_with_all == 0


def test_an_index_of_look_alikes_is_compared_with_few_each() -> None:
    rng = np.random.default_rng(0)
    hashes = look_alikes(rng, 60_000, 8)
    index, comparing = NearIndex(hashes[:50_000], 6), Comparing(6)
    found = index.near(hashes[50_000:], comparing)
    assert found.any()
    # Those known are sorted anew with those that are looked for, so the cost is that of all.
    assert comparing.made < 200 * len(hashes)
    assert comparing.not_with_all == 0


def test_what_may_be_missed_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transfusion.job"), "propagate", True)
    monkeypatch.setattr(crowds, "_REFINEMENTS", 0)
    for module in (crowds, near):
        monkeypatch.setattr(module, "BUCKET", 32)
    hashes = look_alikes(np.random.default_rng(0), 20_000, 8)
    later_near(hashes, 2)
    index = NearIndex(hashes[:10_000], 2)
    for part in np.split(hashes[10_000:], 2):
        index.near(part)
    first, second = (record.getMessage() for record in caplog.records)
    assert re.match(r"\d+ of 20000 perceptual hashes look like so many others", first)
    assert re.match(r"\d+ of \d{4} perceptual hashes look like", second)
