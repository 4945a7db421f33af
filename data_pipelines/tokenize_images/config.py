"""Options of making tokens of images."""

from typing import Any

from pydantic import Field

from data_pipelines.limits import DecodeLimits
from transfusion.config import Config


class TokenizeImagesConfig(Config):
    """Documents as token ids alone: an image is BOI, its codes row by row, EOI."""

    image_size_px: int = Field(ge=8, le=4096)
    """Side of the square crop; a multiple of the autoencoder's downsampling."""

    seed: int = Field(ge=0)
    """Of the order of pairs and the dropped captions."""

    caption_first: float = Field(default=0.8, ge=0, le=1)
    """How often the caption of a pair stands before the image; otherwise it stands behind."""

    caption_drop: float = Field(default=0.1, ge=0, le=1)
    """How often an image that would follow its caption stands alone, for guidance."""

    limits: DecodeLimits = DecodeLimits()

    jpeg_draft: bool = False
    """As in `data_pipelines.encode_images`."""

    micro_batch: int = Field(default=32, ge=1)
    """Images that are encoded together, the last one padded: another size may round to other codes."""

    threads_per_actor: int = Field(default=1, ge=1)
    """Threads of the encoder on a CPU: another number may round otherwise."""

    max_quarantined_shards: int = Field(default=0, ge=0)
    """As in `data_pipelines.encode_images`."""

    @property
    def sizes_px(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the crop."""
        return ((self.image_size_px, self.image_size_px),)

    def shard_identity(self) -> dict[str, Any]:
        """The part that a shard depends on: how many others may fail is not in it."""
        return {k: v for k, v in self.identity().items() if k != "max_quarantined_shards"}
