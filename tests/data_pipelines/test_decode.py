"""Image decoding: bad files are rejected for their reason, good ones are right in every corner."""

import contextlib
import io
import pickle

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
from tests.data_pipelines.test_perceptual_hash import picture
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
