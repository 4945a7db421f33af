"""Options of encoding."""

from typing import Literal

from pydantic import Field

from data_pipelines.limits import DecodeLimits
from transfusion.config import Config


class EncodeImagesConfig(Config):
    """Images to the posterior of an autoencoder."""

    image_size_px: int = Field(ge=8)
    """Side of the square crop; a multiple of the autoencoder's downsampling."""

    limits: DecodeLimits = DecodeLimits()

    micro_batch: int = Field(default=32, ge=1)
    """Images that are encoded together. Fixed, and the last one padded: another size may round otherwise."""

    threads_per_actor: int = Field(default=1, ge=1)
    """Threads of the encoder on a CPU: another number may round otherwise."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's products; its results are kept in half precision either way."""
