"""Pictures made while training, to be looked at.

Axes: k = pictures, h w = pixels.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange
from jaxtyping import UInt8

NUM_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A grid of pictures and what each was to show."""

    png: bytes
    about: Mapping[str, object]
    values: Mapping[str, float] = field(default_factory=dict)
    """What was measured with it, for the run's metrics."""

    def about_bytes(self) -> bytes:
        """`about` as JSON."""
        return json.dumps(self.about, indent=1, sort_keys=True).encode() + b"\n"


def png_row(pictures: UInt8[np.ndarray, "k h w 3"]) -> bytes:
    """Pictures side by side, as a PNG; small ones are enlarged by whole pixels."""
    from PIL import Image

    times = max(1, 96 // pictures.shape[1])
    enlarged = pictures.repeat(times, axis=1).repeat(times, axis=2)
    framed = np.pad(enlarged, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    sink = io.BytesIO()
    Image.fromarray(rearrange(framed, "k h w c -> h (k w) c")).save(sink, format="PNG")
    return sink.getvalue()
