"""Pictures of any size as the model's square, and pixels as files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def to_square(image: Image.Image, size_px: int) -> np.ndarray:
    """The middle square, upright, on white, resized: uint8 (h, w, 3)."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    on_white = Image.new("RGBA", upright.size, "white")
    on_white.alpha_composite(upright)
    size = (size_px, size_px)
    return np.asarray(ImageOps.fit(on_white.convert("RGB"), size, Image.Resampling.LANCZOS))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 RGB pixels; the same pixels give the same bytes."""
    path.write_bytes(png_bytes(pixels))


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 RGB pixels; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
