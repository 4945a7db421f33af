"""One stored latent to the raw posterior, or why not.

Axes: c h w = latent; k = c or 2 c, what is stored.
"""

import io

import numpy as np
from jaxtyping import Float16, Float32

from data_pipelines.adopt_latents.config import AdoptLatentsConfig

Posterior = tuple[Float16[np.ndarray, "c h w"], Float16[np.ndarray, "c h w"]]
"""Mean and standard deviation."""


class BadLatent(Exception):  # noqa: N818 it is an outcome, not a fault of the program
    """These bytes are no latent of the expected shape."""


def posterior(data: bytes, config: AdoptLatentsConfig, shape: tuple[int, int, int]) -> Posterior:
    """Mean and standard deviation, with scaling and shift undone.

    Args:
        shape: Channels, height and width that are expected of each.

    Raises:
        BadLatent: Another shape or type, values that are not finite or too large for half precision.
    """
    channels, height, width = shape
    stored = (channels if config.holds == "mean" else 2 * channels, height, width)
    values = _array(data, config, stored)
    mean = values[:channels] / config.scaling_factor + config.shift_factor
    if config.holds == "mean":
        std = np.zeros_like(mean)
    elif config.holds == "mean_std":
        std = values[channels:] / config.scaling_factor
        if (std < 0).any():
            raise BadLatent("a standard deviation below 0: is it a log-variance? Then set holds")
    else:
        # The limits of diffusers' DiagonalGaussianDistribution, to which its encoders are trained.
        std = np.exp(0.5 * np.clip(values[channels:], -30, 20)) / config.scaling_factor
    with np.errstate(over="ignore"):
        halves = mean.astype(np.float16), std.astype(np.float16)
    if not all(np.isfinite(half).all() for half in halves):
        raise BadLatent("values that are not finite in half precision")
    return halves


def _array(
    data: bytes, config: AdoptLatentsConfig, stored: tuple[int, int, int]
) -> Float32[np.ndarray, "k h w"]:
    if config.encoding == "npy":
        try:
            # Never a pickle: an object array is refused.
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise BadLatent(f"is no array in NumPy's format: {error}"[:200]) from error
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            raise BadLatent("holds no array of floating-point numbers")
        if values.shape != stored:
            raise BadLatent(f"has the shape {values.shape}, expected {stored}")
        return values.astype(np.float32)
    dtype = np.dtype("<f2" if config.encoding == "raw_fp16" else "<f4")
    expected = dtype.itemsize * int(np.prod(stored))
    if len(data) != expected:
        raise BadLatent(f"has {len(data)} bytes, expected {expected} for {stored} as {dtype.name}")
    return np.frombuffer(data, dtype).reshape(stored).astype(np.float32)
