"""Any bytes at all come to pixels or to a `Reject` with a known reason: nothing else leaves the decoder."""

import functools
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.decode import Decoded, Reject, decode
from data_pipelines.limits import DecodeLimits
from tests.hostile import bad_images, good_images, swapped_profile, turned

LIMITS = DecodeLimits(max_pixels=200_000, min_side_px=1, max_aspect=1000)
REASONS = {
    "animated", "not_an_image", "not_finite", "oversized_metadata", "too_elongated", "too_many_bytes",
    "too_many_pixels", "too_small", "truncated", "unsupported_format",
}  # fmt: skip
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")


@functools.cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Small real files of a format: colour, grey, transparent, animated, with a profile and with EXIF."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    found = []
    ways: list[tuple[Image.Image, dict]] = [(color, {}), (color.convert("L"), {})]
    if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        ways += [(color, {"icc_profile": swapped_profile()}), (color, {"exif": turned_exif()})]
    if kind in ("GIF", "WEBP", "PNG", "TIFF"):
        ways.append((color, {"save_all": True, "append_images": [color.rotate(90)]}))
    if kind == "TIFF":
        ways += [(color.convert("CMYK"), {}), (color, {"compression": "tiff_lzw"})]
        ways += [
            (color, {"compression": "jpeg"}),
            (Image.fromarray(np.ones((9, 9), np.float32)), {}),
        ]
    if kind == "JPEG":
        ways += [(color.convert("CMYK"), {}), (color, {"progressive": True})]
    if kind in ("PNG", "WEBP"):
        ways.append((color.convert("RGBA"), {}))
    for image, options in ways:
        data = io.BytesIO()
        image.save(data, kind, **options)
        found.append(data.getvalue())
    return tuple(found)


def turned_exif() -> Image.Exif:
    return Image.open(io.BytesIO(turned(6).data)).getexif()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real file with bytes changed, cut out, repeated, or put in from another one."""
    data = bytearray(draw(st.sampled_from(seeds(draw(st.sampled_from(KINDS))))))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(("set", "flip", "cut", "repeat", "number", "graft"))):
            case "set":
                data[place] = draw(st.integers(0, 255))
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place : place + draw(st.integers(1, 64))]
            case "repeat":
                data[place:place] = data[place : place + draw(st.integers(1, 64))]
            case "number":
                data[place : place + 4] = draw(
                    st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
                )
            case "graft":
                other = draw(st.sampled_from(seeds(draw(st.sampled_from(KINDS)))))
                start = draw(st.integers(0, len(other) - 1))
                data[place:place] = other[start : start + draw(st.integers(1, 128))]
    return bytes(data)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(mutated(), st.booleans())
def test_a_mutated_file_comes_to_pixels_or_a_reject(data: bytes, draft: bool) -> None:
    found = outcome(data, draft_sizes_px=[(8, 8)] if draft else ())
    if isinstance(found, Reject):
        assert found.reason in REASONS
        assert found.detail
    else:
        assert found.pixels.dtype == np.uint8
        assert found.pixels.ndim == 3
        assert found.pixels.shape[2] == 3
        assert min(found.pixels.shape) > 0


def outcome(data: bytes, **options: object) -> Decoded | Reject:
    try:
        return decode(data, LIMITS, **options)
    except Reject as reject:
        return reject


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_come_to_pixels_or_a_reject(data: bytes) -> None:
    with pytest.raises(Reject) as caught:
        decode(data, LIMITS)
    assert caught.value.reason in REASONS


def test_every_reason_that_is_listed_has_a_file() -> None:
    seen = {image.reason for image in bad_images()}
    # The size in bytes and the policy for animations have tests of their own.
    assert seen == REASONS - {"too_many_bytes", "animated"}
    assert all(image.reason is None for image in good_images())
