"""Limits on what is decoded: apart from the decoder, so that a plan is made without Pillow and numpy."""

from typing import Literal

from pydantic import Field

from transfusion.config import Config


class DecodeLimits(Config):
    """What an image may be at most and at least."""

    max_bytes: int = Field(default=64 * 2**20, ge=1)
    """Size of the file."""

    max_pixels: int = Field(default=64_000_000, ge=1, le=178_000_000)
    """Width times height, checked before the pixels are decoded."""

    min_side_px: int = Field(default=16, ge=1)

    max_aspect: float = Field(default=8.0, ge=1)
    """Longer side over shorter side."""

    decode_cpu_s: float = Field(default=20.0, gt=0)
    """CPU seconds for one image, crop and hashes included; a slower one is tried once more, then rejected."""

    animated: Literal["first_frame", "reject"] = "first_frame"
    """What becomes of GIF, WebP, APNG and TIFF files of more than one frame or page."""
