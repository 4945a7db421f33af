"""Timesteps for training, from numbers in [0, 1).

The draw itself is the caller's, so that runs which differ in this alone draw all else alike.
"""

import math
from statistics import NormalDist

from transfusion.diffusion.config import ObjectiveConfig

_NORMAL = NormalDist()
_SMALLEST = 2.0**-54
"""Half a step of the numbers that are drawn: 0 has no place on the normal."""


def timestep_at(chance: float, objective: ObjectiveConfig, *, limit: int) -> int:
    """The timestep below `limit` that a uniform number in [0, 1) stands for: a larger number, a later timestep."""
    if objective.timestep_draw == "logit_normal":
        # Source: Esser et al. 2024, arXiv:2403.03206, section 3.1.
        normal = _NORMAL.inv_cdf(max(chance, _SMALLEST))
        chance = 1 / (1 + math.exp(-(objective.logit_mean + objective.logit_std * normal)))
    return min(int(shifted(chance, objective.timestep_shift) * limit), limit - 1)


def shifted(time: float, shift: float) -> float:
    """A time in [0, 1], 1 for noise, moved towards noise.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 23; `shift` is the root of m / n there.
    """
    return shift * time / (1 + (shift - 1) * time)
