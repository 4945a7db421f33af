"""Image decoding: bad files are rejected for their reason, good ones are right in every corner."""

import contextlib
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.crop import center_crop_resize
from data_pipelines.decode import (
    FORMATS,
    DecodeLimits,
    Reject,
    decode,
    decode_image,
)
from tests.data_pipelines.pictures import picture
from tests.hostile import HostileImage, bad_images, corners, good_images, quadrant_pixels

LIMITS = DecodeLimits()


def _named(image: HostileImage) -> str:
    return image.name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("image", list(bad_images()), ids=_named)
def test_a_bad_file_is_rejected_for_its_reason(image: HostileImage) -> None:
    with pytest.raises(Reject) as caught:
        decode_image(image.data, LIMITS)
    assert caught.value.reason == image.reason, caught.value.detail
    assert caught.value.detail


@pytest.mark.parametrize("image", list(good_images()), ids=_named)
def test_a_good_file_is_right_in_every_corner(image: HostileImage) -> None:
    pixels = decode_image(image.data, LIMITS)
    assert pixels.shape == (64, 64, 3)
    np.testing.assert_allclose(corners(pixels), image.quadrants, atol=image.tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_cutting_or_flipping_bytes_rejects_or_decodes_but_never_crashes(kind: str) -> None:
    draws = np.random.default_rng(7)
    buffer = io.BytesIO()
    Image.fromarray(draws.integers(0, 256, (48, 40, 3), np.uint8)).save(buffer, kind)
    whole = buffer.getvalue()
    for _ in range(60):
        data = bytearray(whole[: draws.integers(1, len(whole) + 1)])
        for place in draws.integers(0, len(data), 4):
            data[place] = draws.integers(0, 256)
        with contextlib.suppress(Reject):
            assert decode_image(bytes(data), LIMITS).ndim == 3


def test_what_is_lost_or_guessed_is_noted() -> None:
    notes = {image.name: decode(image.data, LIMITS).notes for image in good_images()}
    assert notes["moving.gif"] == notes["moving.webp"] == notes["pages.tif"] == ("first_frame",)
    assert notes["broken_profile.png"] == ("broken_icc",)
    assert notes["float.tif"] == notes["signed.tif"] == ("range_guessed",)
    assert notes["plain.png"] == notes["profile.png"] == notes["deep.png"] == ()


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png", "pages.tif"])
def test_animations_are_rejected_when_the_policy_says_so(name: str) -> None:
    image = next(image for image in good_images() if image.name == name)
    with pytest.raises(Reject, match="animated"):
        decode_image(image.data, DecodeLimits(animated="reject"))


def test_limits_hold_to_the_pixel_and_byte() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "PNG")
    data = buffer.getvalue()
    exact = DecodeLimits(max_bytes=len(data), max_pixels=800, min_side_px=20, max_aspect=2.0)
    assert decode_image(data, exact).shape == (20, 40, 3)
    for field, value, reason in (
        ("max_bytes", len(data) - 1, "too_many_bytes"),
        ("max_pixels", 799, "too_many_pixels"),
        ("min_side_px", 21, "too_small"),
        ("max_aspect", 1.99, "too_elongated"),
    ):
        with pytest.raises(Reject, match=reason):
            decode_image(data, exact.model_copy(update={field: value}))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def test_sixteen_bits_a_channel_are_scaled_and_not_cut() -> None:
    """A 16-bit RGB PNG, put together by hand: Pillow writes none."""
    pixels = (quadrant_pixels().astype(">u2") * 257).tobytes()
    rows = b"".join(b"\0" + pixels[at : at + 384] for at in range(0, len(pixels), 384))

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert corners(decode_image(data, LIMITS)) == corners(quadrant_pixels())


def test_lab_and_ycck_come_to_the_colours_they_mean() -> None:
    levels = ((255, 0, 0), (0, 0, 0), (137, 80, 67), (82, 79, 256 - 108))
    lab = Image.fromarray(quadrant_pixels(levels), "RGB")
    lab = Image.frombytes("LAB", lab.size, lab.tobytes())
    pixels = corners(decode_image(saved(lab, "TIFF"), LIMITS))
    # White, black, and the sRGB primaries red and blue of CIE Lab 53/80/67 and 32/79/-108, in bytes.
    np.testing.assert_allclose(pixels[0], (255, 255, 255), atol=3)
    np.testing.assert_allclose(pixels[1], (0, 0, 0), atol=3)
    assert pixels[2][0] > 240
    assert max(pixels[2][1:]) < 40
    assert pixels[3][2] > 240
    assert pixels[3][1] < 60

    inks = ((60, 128, 128, 0), (200, 128, 128, 0), (128, 100, 160, 0), (90, 128, 128, 255))
    cmyk = Image.fromarray(quadrant_pixels(inks), "CMYK")
    data = bytearray(saved(cmyk, "JPEG", quality=100, subsampling=0))
    # The transform of the Adobe marker: 0 says CMYK, 2 says that the same bytes are YCCK.
    data[data.index(b"Adobe") + 11] = 2
    got = corners(decode_image(bytes(data), LIMITS))
    for (y, cb, cr, _), pixel in zip(inks[:2], got[:2], strict=True):
        assert (cb, cr) == (128, 128)
        # Adobe's inks are stored inverted: what was written as ink is 255 less that, a luma of the paper's colour.
        np.testing.assert_allclose(pixel, [y] * 3, atol=4)
    assert max(got[3]) < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_dots_and_threads_are_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(Reject, match="too_small"):
        decode_image(saved(Image.new("L", size), "PNG"), LIMITS)


def test_formats_that_are_not_read_are_told_by_their_name() -> None:
    image = Image.new("RGB", (32, 32))
    for kind, name in (
        ("JPEG2000", "JPEG 2000"),
        ("ICO", "ICO"),
        ("PDF", "PDF"),
        ("EPS", "PostScript"),
    ):
        with pytest.raises(Reject, match=f"unsupported_format: a {name} file"):
            decode_image(saved(image, kind), LIMITS)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_image_of_one_colour_is_an_image(level: int) -> None:
    pixels = decode_image(saved(Image.new("RGB", (40, 40), (level,) * 3), "PNG"), LIMITS)
    assert (pixels == level).all()


def test_formats_that_would_start_other_programs_are_not_opened() -> None:
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}


def test_a_rejection_crosses_process_borders() -> None:
    back = pickle.loads(pickle.dumps(Reject("truncated", "half")))
    assert (back.reason, back.detail) == ("truncated", "half")


def test_the_crop_is_centred_and_the_size_asked_for() -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = quadrant_pixels()
    assert np.array_equal(center_crop_resize(wide, 64), quadrant_pixels())
    tall = wide.transpose(1, 0, 2)
    assert np.array_equal(center_crop_resize(tall, 64), quadrant_pixels().transpose(1, 0, 2))
    small = center_crop_resize(wide, 32)
    assert small.shape == (32, 32, 3)
    assert corners(small) == corners(quadrant_pixels())


def jpeg(side_px: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    pixels = picture(3, side_px)[: side_px * 3 // 4]
    Image.fromarray(pixels).save(data, "JPEG", quality=92, exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 48)])
def test_a_draft_gives_nearly_the_same_crop(size: tuple[int, int], orientation: int) -> None:
    data = jpeg(512, orientation)
    whole, draft = decode(data, LIMITS), decode(data, LIMITS, draft_sizes_px=[size])
    assert draft.original == whole.original == whole.pixels.shape[:2]
    assert whole.pixels.shape[0] / draft.pixels.shape[0] in (2, 4)
    exact = center_crop_resize(whole.pixels, size).astype(float)
    near = center_crop_resize(draft.pixels, size).astype(float)
    psnr_db = 10 * np.log10(255**2 / np.square(exact - near).mean())
    assert psnr_db > 32


def test_a_draft_keeps_every_pixel_that_the_crop_needs() -> None:
    for size, scale in (
        ((384, 384), 1),
        ((200, 200), 1),
        ((192, 192), 2),
        ((96, 96), 4),
        ((97, 97), 2),
    ):
        draft = decode(jpeg(512), LIMITS, draft_sizes_px=[size])
        assert draft.pixels.shape == (384 // scale, 512 // scale, 3)
    png = next(image.data for image in good_images() if image.name == "plain.png")
    assert np.array_equal(
        decode(png, LIMITS, draft_sizes_px=[(16, 16)]).pixels, decode(png, LIMITS).pixels
    )


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    fine = np.zeros((256, 256, 3), np.uint8)
    fine[::2, ::2] = fine[1::2, 1::2] = 255
    middle = center_crop_resize(fine, 32)[4:-4, 4:-4].astype(int)
    assert abs(middle - 127.5).max() <= 4
