"""Randomness by counting: a draw depends on what it is for, never on what was drawn before it.

So it does not matter which worker draws, in which order, or whether the run was interrupted.
"""

import numpy as np
from jaxtyping import Float64, UInt64

_MULTIPLIERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_MASK = 2**64 - 1
_EMPTY = np.zeros(4, np.uint64)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """Generators for one purpose, by up to three counters (epoch, lane, document, ...); one at a time.

    Each call sets the one generator that there is to another place of its sequence, ten times faster than
    making a new one; so what `at` returned before is of no use any more.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._key = np.array([seed & _MASK, purpose & _MASK], np.uint64)
        self._bits = np.random.Philox(key=self._key)
        self._generator = np.random.Generator(self._bits)

    def at(self, *counters: int) -> np.random.Generator:
        """The generator, set to where these counters begin."""
        padded = [0, *(counter & _MASK for counter in counters), *[0] * (3 - len(counters))]
        self._bits.state = {
            "bit_generator": "Philox",
            "state": {"counter": np.array(padded, np.uint64), "key": self._key},
            "buffer": _EMPTY,
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._generator


def uniform(
    seed: int, purpose: int, first: UInt64[np.ndarray, " n"], second: UInt64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """One number in [0, 1) for each pair of counters: many draws at once, where a generator each would be slow.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained over the words.
    """
    with np.errstate(over="ignore"):
        state = np.full_like(first, np.uint64(seed & _MASK))
        for word in (np.full_like(first, np.uint64(purpose)), first, second):
            state = _mix(state + _GOLDEN + word)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(word: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    word = (word ^ (word >> np.uint64(30))) * _MULTIPLIERS[0]
    word = (word ^ (word >> np.uint64(27))) * _MULTIPLIERS[1]
    return word ^ (word >> np.uint64(31))
