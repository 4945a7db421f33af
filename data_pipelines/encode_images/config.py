"""Options of encoding."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines.limits import DecodeLimits
from transfusion.config import Config


class AspectBuckets(Config):
    """Several sizes to crop to, so that less of tall and wide images is lost; give `sizes` or `count`.

    An image takes the size of nearest aspect, by the logarithm of the ratio. Each size has its own micro-batches,
    so that shapes stay constant.
    """

    sizes: tuple[str, ...] = ()
    """Height x width in pixels, such as `192x320`; the area within a quarter of `image_size_px` squared."""

    count: int = Field(default=0, ge=0)
    """So many sizes of about that area, their aspects evenly spread by logarithm."""

    max_aspect: float = Field(default=2.0, ge=1, le=8)
    """Longer side over shorter side, of the outermost of `count` sizes."""

    multiple_px: int = Field(default=32, ge=1)
    """Sides of the `count` sizes are multiples of it, and it of the autoencoder's downsampling."""

    @field_validator("sizes")
    @classmethod
    def _sizes_are_sizes(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            height, cross, width = size.partition("x")
            if not (
                cross and height.isdecimal() and width.isdecimal() and int(height) * int(width)
            ):
                raise ValueError(f"{size!r} is no size; write height x width, such as '192x320'")
        return sizes

    @model_validator(mode="after")
    def _one_of_two(self) -> "AspectBuckets":
        if bool(self.sizes) == bool(self.count):
            raise ValueError("give either sizes or count")
        return self

    def sizes_px(self, side_px: int) -> tuple[tuple[int, int], ...]:
        """Heights and widths, the same size once."""
        if self.sizes:
            pairs = [size.split("x") for size in self.sizes]
            return tuple(dict.fromkeys((int(height), int(width)) for height, width in pairs))
        found = []
        for place in range(self.count):
            exponent = 2 * place / (self.count - 1) - 1 if self.count > 1 else 0.0
            stretch = math.sqrt(self.max_aspect**exponent)
            found.append((self._rounded(side_px * stretch), self._rounded(side_px / stretch)))
        return tuple(dict.fromkeys(found))

    def _rounded(self, side_px: float) -> int:
        return max(1, round(side_px / self.multiple_px)) * self.multiple_px


class EncodeImagesConfig(Config):
    """Images to the posterior of an autoencoder."""

    image_size_px: int = Field(ge=8, le=4096)
    """Side of the square crop; a multiple of the autoencoder's downsampling."""

    buckets: AspectBuckets | None = None
    """Crops of several aspects, of about the area of the square, in place of the square."""

    limits: DecodeLimits = DecodeLimits()

    jpeg_draft: bool = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 where the crop needs no more: faster where the source is twice the crop or
    more. Crops differ a little: by a PSNR over 32 dB on noise with the spectrum of photographs."""

    micro_batch: int = Field(default=32, ge=1)
    """Images that are encoded together. Fixed, and the last one padded: another size may round otherwise."""

    threads_per_actor: int = Field(default=1, ge=1)
    """Threads of the encoder on a CPU: another number may round otherwise."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's products; its results are kept in half precision either way."""

    max_quarantined_shards: int = Field(default=0, ge=0)
    """Shards that may fail, each after its attempts, before the stage does. The artifact lists them, their errors
    in `quarantined.json`, and is without their rows; with 0 again, they alone are tried again."""

    @model_validator(mode="after")
    def _areas_are_near(self) -> "EncodeImagesConfig":
        for height, width in self.sizes_px:
            if not 0.75 <= height * width / self.image_size_px**2 <= 1.25:
                raise ValueError(
                    f"bucket {height}x{width}: {height * width} pixels must be within a quarter of "
                    f"image_size_px squared, {self.image_size_px**2}; mend the size or multiple_px"
                )
        return self

    @property
    def sizes_px(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths that images are cropped to."""
        if self.buckets is None:
            return ((self.image_size_px, self.image_size_px),)
        return self.buckets.sizes_px(self.image_size_px)

    def shard_identity(self) -> dict[str, Any]:
        """The part that a shard depends on: how many others may fail is not in it."""
        return {k: v for k, v in self.identity().items() if k != "max_quarantined_shards"}
