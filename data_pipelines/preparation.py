"""What is done to one image file: decode, crop, hash. A pure function that can be sent to another process."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_pipelines.crop import Size, center_crop_resize, nearest_size
from data_pipelines.decode import decode
from data_pipelines.limits import DecodeLimits
from data_pipelines.perceptual_hash import perceptual_hash


class Facts(NamedTuple):
    """What is known of an image that can be encoded."""

    sha256: bytes
    """Of the source bytes."""
    phash: int
    """Perceptual hash of the crop."""
    original_height: int
    original_width: int
    notes: tuple[str, ...]
    """As in `Decoded`."""


class Prepared(NamedTuple):
    """An image that can be encoded."""

    pixels: UInt8[np.ndarray, "h w 3"]
    """The crop."""
    facts: Facts


@dataclass(frozen=True)
class Preparation:
    """Prepares images; the same bytes come to the same result in any process."""

    limits: DecodeLimits
    sizes_px: tuple[Size, ...]
    """Sizes to crop to; each image takes the one of nearest aspect."""
    jpeg_draft: bool = False
    """Decode JPEG at a smaller scale where the crop needs no more: faster, and not the same pixels."""

    def __call__(self, data: bytes) -> Prepared:
        """Prepares one image.

        Raises:
            Reject: The file cannot be used.
        """
        found = decode(data, self.limits, draft_sizes_px=self.sizes_px if self.jpeg_draft else ())
        pixels = center_crop_resize(found.pixels, nearest_size(found.original, self.sizes_px))
        facts = Facts(
            sha256=hashlib.sha256(data).digest(),
            phash=perceptual_hash(pixels),
            original_height=found.original[0],
            original_width=found.original[1],
            notes=found.notes,
        )
        return Prepared(pixels, facts)


def count_notes(facts: Iterable[Facts]) -> dict[str, int]:
    """How many images were decoded with each note."""
    return dict(sorted(Counter(note for known in facts for note in known.notes).items()))
