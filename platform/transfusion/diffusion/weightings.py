"""Weights of the error by timestep.

Each is a weight of the error in the clean latent, by the ratio of signal to noise, and is carried over to the
target by how an error in that becomes one in the clean latent.
Axes: t = timesteps.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.config import LossWeighting, TargetName
from transfusion.diffusion.schedules import NoisePath
from transfusion.diffusion.targets import determinant


def loss_weights(
    name: LossWeighting, target: TargetName, path: NoisePath, *, gamma: float
) -> Float[Tensor, " t"] | None:
    """What the mean squared error in the target counts at each timestep; None where all count alike.

    Args:
        gamma: Of `min_snr`.
    """
    weighting = WEIGHTINGS[name]
    if weighting is None:
        return None
    # Weights are times the power of the noise, so that nothing is divided by it: at a clean timestep it is 0.
    return weighting(path, gamma) / determinant(target, path).square()


def _min_snr(path: NoisePath, gamma: float) -> Tensor:
    """min(SNR, gamma). Source: Hang et al. 2023, arXiv:2303.09556, section 3.4."""
    return torch.minimum(path.signal.square(), gamma * path.noise.square())


def _truncated_snr(path: NoisePath, gamma: float) -> Tensor:  # noqa: ARG001
    """max(SNR, 1). Source: Salimans & Ho 2022, arXiv:2202.00512, section 4."""
    return torch.maximum(path.signal.square(), path.noise.square())


WEIGHTINGS: Mapping[LossWeighting, Callable[[NoisePath, float], Tensor] | None] = MappingProxyType(
    {"none": None, "min_snr": _min_snr, "truncated_snr": _truncated_snr}
)
