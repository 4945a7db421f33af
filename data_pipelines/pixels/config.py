"""Options of decoding."""

from pydantic import Field

from data_pipelines.limits import DecodeLimits
from transfusion.config import Config


class PixelsConfig(Config):
    """Images as squares of bytes."""

    image_size_px: int = Field(ge=8)
    """Side of the square crop."""

    max_images: int = Field(default=50_000, ge=1)
    """Images to take, evenly from the shards; fewer when there are no more."""

    limits: DecodeLimits = DecodeLimits()
