"""Options of encoding."""

from typing import Literal

from pydantic import Field

from data_pipelines.limits import DecodeLimits
from transfusion.config import Config


class EncodeImagesConfig(Config):
    """How images become latents. All of it decides their bits, so all of it is identity."""

    image_size_px: int = Field(ge=8, le=4096)
    """Side of the square crop; a multiple of the autoencoder's downsampling."""

    micro_batch: int = Field(default=16, ge=1)
    """Images that go through the encoder together; the last of a shard is padded. Another size would flip the
    last bit of some latents, which is why it is fixed here and not by the machine."""

    threads_per_actor: int = Field(default=1, ge=1)
    """Threads of the encoder on CPU; like `micro_batch`, another number flips last bits."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder; the posterior is kept in fp16 either way."""

    limits: DecodeLimits = DecodeLimits()
