"""Options of the sample of decoded images."""

from pydantic import Field

from data_pipelines.limits import DecodeLimits
from transfusion.config import Config


class PixelsConfig(Config):
    """Which images are decoded, and to what size.

    An autoencoder needs some ten thousand images, not the whole bucket: whole shards are picked by a hash of
    their identity, and images within a shard by a hash of their content, so that the sample is spread evenly,
    does not depend on order, and stays as it is where the bucket grows elsewhere.
    """

    image_size_px: int = Field(ge=8, le=4096)
    """Side of the square crop."""

    max_shards: int = Field(default=16, ge=1)

    max_images_per_shard: int = Field(default=4096, ge=1)

    limits: DecodeLimits = DecodeLimits()
