"""Pictures of any size as the model's square, and pixels as files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def to_square(image: Image.Image, size_px: int) -> np.ndarray:
    """The middle square, upright, on white, resized: uint8 (h, w, 3).

    Raises:
        ValueError: It has pixels that are NaN or infinite.
    """
    upright = ImageOps.exif_transpose(image)
    if is_deep(upright):
        upright = scaled_grey(upright)
    upright = upright.convert("RGBA")
    on_white = Image.new("RGBA", upright.size, "white")
    on_white.alpha_composite(upright)
    size = (size_px, size_px)
    return np.asarray(ImageOps.fit(on_white.convert("RGB"), size, Image.Resampling.LANCZOS))


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits, which Pillow would cut at 255 and not scale."""
    return image.mode.startswith("I") or image.mode == "F"


def has_known_range(image: Image.Image) -> bool:
    """Whether a deep grey says itself what is white."""
    return image.mode.startswith("I;16")


def scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, its range made 0..255; pipelines and uploads read it alike.

    16-bit files have the range 0..65535. Integers and floats that fit a usual range (0..1 for floats, 0..255,
    0..65535) have that one; others have the range of their own values.

    Raises:
        ValueError: It has pixels that are NaN or infinite.
    """
    if has_known_range(image):
        # 65535 is 255 x 257. Without floats, which take eight times the memory of a large upload.
        whole, rest = np.divmod(np.asarray(image), 257)
        return Image.fromarray((whole + (rest > 128)).astype(np.uint8))
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"mode {image.mode} with NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    fitting = [top for top in usual if low >= 0 and high <= top]
    low, high = (0.0, fitting[0]) if fitting else (low, high)
    scaled = (values - low) * (255.0 / max(high - low, 1e-30))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 RGB pixels; the same pixels give the same bytes."""
    path.write_bytes(png_bytes(pixels))


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 RGB pixels; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
