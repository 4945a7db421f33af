"""Image files to pixels: 8-bit RGB in sRGB, upright, on white; or a reason why not.

Rules: only whitelisted formats are opened; sizes are checked before any pixel is decoded; EXIF orientation is
applied; transparency is laid on white; 16-bit and float greys are scaled by their range, not clipped; colours are
converted to sRGB by the ICC profile, or plainly when that is broken; of an animation the first frame is taken.

Axes: h, w = pixels.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data_pipelines.crop import Size, covering_size, nearest_size
from data_pipelines.limits import DecodeLimits
from transfusion.sample.pictures import has_known_range, is_deep, scaled_grey

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow opens many more, EPS among them, for which it would start Ghostscript."""


class Reject(Exception):  # noqa: N818 it is an outcome, not a fault of the program
    """The image cannot be used; `reason` is a fixed word to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Reject"], tuple[str, str]]:
        return (Reject, (self.reason, self.detail))


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as pixels."""

    pixels: UInt8[np.ndarray, "h w 3"]

    original: Size
    """Height and width of the upright image; those of the pixels unless a JPEG was decoded at a smaller scale."""

    notes: tuple[str, ...]
    """What was done that loses or guesses something, such as `first_frame` or `broken_icc`: to be counted."""


def decode_image(data: bytes, limits: DecodeLimits) -> UInt8[np.ndarray, "h w 3"]:
    """The image's pixels.

    Raises:
        Reject: The file cannot be used.
    """
    return decode(data, limits).pixels


def decode(data: bytes, limits: DecodeLimits, *, draft_sizes_px: Sequence[Size] = ()) -> Decoded:
    """The image's pixels, and what was lost or guessed on the way.

    Args:
        draft_sizes_px: When given, a JPEG is decoded at 1/2, 1/4 or 1/8 where its crop to the nearest of these
            sizes needs no more.

    Raises:
        Reject: The file cannot be used.
    """
    if len(data) > limits.max_bytes:
        raise Reject("too_many_bytes", f"{len(data)} bytes; at most {limits.max_bytes} are read")
    notes: list[str] = []
    with warnings.catch_warnings():
        # Pillow warns of large images and broken EXIF; the first is checked here, the second does no harm.
        warnings.simplefilter("ignore")
        image = _open(data, limits)
        _check_size(image.size, limits)
        if _is_animated(image):
            if limits.animated == "reject":
                raise Reject("animated", f"{image.format} of more than one frame")
            notes.append("first_frame")
        drafted = _draft(image, draft_sizes_px) if draft_sizes_px else None
        _load(image)
        image = _upright(image, notes)
        rgb = _to_rgb(image, notes)
    pixels = np.array(rgb, dtype=np.uint8)
    return Decoded(pixels, drafted or (rgb.height, rgb.width), tuple(notes))


def _open(data: bytes, limits: DecodeLimits) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise Reject(
            "too_many_pixels", f"{error}; at most {limits.max_pixels} are decoded"
        ) from error
    except ValueError as error:
        raise Reject("oversized_metadata", str(error)) from error
    except (
        Exception
    ) as error:  # a decoder may raise anything on hostile bytes; one file must not end a job
        raise Reject("truncated", _describe(error)) from error


def _unidentified(data: bytes) -> Reject:
    for (offset, start), name in _SIGNATURES.items():
        if data[offset : offset + len(start)] == start:
            if name in FORMATS:
                return Reject("truncated", f"begins as a {name} file but cannot be opened")
            return Reject("unsupported_format", f"a {name} file; read are {', '.join(FORMATS)}")
    shown = data[:24].decode("ascii", "backslashreplace") if data else "no bytes"
    return Reject("not_an_image", f"{len(data)} bytes beginning with {shown!r}")


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    shown = f"{width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise Reject("too_many_pixels", f"{shown}; at most {limits.max_pixels} are decoded")
    if min(size) < limits.min_side_px:
        raise Reject(
            "too_small", f"{shown}; the shorter side must be at least {limits.min_side_px}"
        )
    if max(size) > limits.max_aspect * min(size):
        raise Reject(
            "too_elongated", f"{shown}; one side may be {limits.max_aspect:g} times the other"
        )


def _is_animated(image: Image.Image) -> bool:
    # A phone's JPEG with a preview or a depth map (MPO) is a still.
    if image.format == "MPO":
        return False
    return bool(_guarded(lambda: getattr(image, "is_animated", False)))


def _draft(image: Image.Image, sizes_px: Sequence[Size]) -> Size | None:
    """Has libjpeg scale in the frequency domain; returns the upright size before that, None for other formats."""
    if image.format not in ("JPEG", "MPO"):
        return None
    try:
        turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # as in `_upright`, which will leave such an image as it is
        turned = False
    original = (image.width, image.height) if turned else (image.height, image.width)
    height, width = covering_size(original, nearest_size(original, sizes_px))
    image.draft(None, (height, width) if turned else (width, height))
    return original


def _load(image: Image.Image) -> None:
    size = image.size
    _guarded(image.load)
    if sorted(image.size) != sorted(size):
        raise Reject("truncated", f"announces {size} pixels and decodes to {image.size}")


def _guarded(action: Callable[[], T]) -> T:
    """What a decoder returns; whatever it raises on broken bytes is a rejection."""
    try:
        return action()
    except MemoryError:
        raise
    except Exception as error:
        raise Reject("truncated", _describe(error)) from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF is free-form; the pixels are good
        notes.append("broken_exif")
        return image


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if is_deep(image):
        try:
            scaled = scaled_grey(image).convert("RGB")
        except ValueError as error:
            raise Reject("not_finite", str(error)) from error
        if not has_known_range(image):
            notes.append("range_guessed")
        return scaled
    profile = image.info.get("icc_profile")
    transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
    if transparent:
        layered = _guarded(lambda: image.convert("RGBA"))
        alpha = layered.getchannel("A")
        color = _to_srgb(layered.convert("RGB"), profile, notes)
        return Image.composite(color, Image.new("RGB", image.size, "white"), alpha)
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _to_srgb(image, profile, notes)


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Converts by the file's ICC profile; without one, or with a broken one, by Pillow's plain rule."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # sRGB to sRGB would change pixels by rounding alone.
            if image.mode == "RGB" and ImageCms.getProfileDescription(source).startswith("sRGB"):
                return image
            space = source.profile.xcolor_space.strip()
            if space == "GRAY" and image.mode == "RGB":
                image = image.convert("L")
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("broken_icc")
        else:
            assert converted is not None
            return converted
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    return _guarded(lambda: image.convert("RGB"))


_ORIENTATION = 0x0112
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")

_SIGNATURES: Mapping[tuple[int, bytes], str] = MappingProxyType(
    {
        (0, b"\xff\xd8\xff"): "JPEG",
        (0, b"\x89PNG"): "PNG",
        (0, b"GIF8"): "GIF",
        (8, b"WEBP"): "WEBP",
        (0, b"II*\x00"): "TIFF",
        (0, b"MM\x00*"): "TIFF",
        (4, b"ftypavif"): "AVIF",
        (0, b"%!PS"): "PostScript",
        (0, b"\xc5\xd0\xd3\xc6"): "PostScript",
        (0, b"%PDF"): "PDF",
        (0, b"8BPS"): "Photoshop",
        (4, b"ftyphei"): "HEIC",
        (4, b"ftyphevc"): "HEIC",
        (4, b"ftypmif1"): "HEIF",
        (4, b"ftypmsf1"): "HEIF",
        (0, b"<svg"): "SVG",
        (0, b"\x00\x00\x01\x00"): "ICO",
        (0, b"\xd7\xcd\xc6\x9a"): "WMF",
        (0, b"\xff\x0a"): "JPEG XL",
        (0, b"\x00\x00\x00\x0cJXL "): "JPEG XL",
        (0, b"\x00\x00\x00\x0cjP  "): "JPEG 2000",
    }
)
"""How image files begin: the bytes at an offset, and the format they announce."""
