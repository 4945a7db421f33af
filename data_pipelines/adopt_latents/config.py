"""Options of taking latents in."""

from typing import Literal

from pydantic import Field

from transfusion.config import Config


class AdoptLatentsConfig(Config):
    """Latents where other documents have an image: a Parquet column, a tar member, a file of a folder."""

    image_size_px: int = Field(ge=8)
    """Side of the square crop that was encoded; with the autoencoder it decides the shape that is expected."""

    encoding: Literal["npy", "raw_fp16", "raw_fp32"] = "npy"
    """How an array is stored: NumPy's file format, or its bare bytes, little-endian, in the order c h w."""

    holds: Literal["mean_logvar", "mean_std", "mean"] = "mean_logvar"
    """What lies one after the other along the channels. `mean_logvar` is what diffusers calls the parameters of
    `latent_dist`; of `mean` alone the standard deviation is taken as 0."""

    scaling_factor: float = Field(default=1.0, gt=0)
    """What the latents were multiplied with after encoding; 0.18215 for Stable Diffusion's. It is undone."""

    shift_factor: float = 0.0
    """What was taken off before that. It is undone too."""

    max_statistics_error: float = Field(default=0.5, gt=0)
    """How far the mean of a channel may lie from the autoencoder's, in its standard deviations, and how far the
    logarithm of its standard deviation: beyond it, these latents are not of this autoencoder."""
