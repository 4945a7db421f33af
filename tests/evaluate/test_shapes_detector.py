"""The detector: it reads drawn images without error, and what an autoencoder does to them nearly so."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFilter

from data_pipelines.documents import Image
from data_pipelines.sources.shapes import ShapesConfig, document
from transfusion.evaluate.shapes.detector import Object, detect
from transfusion.evaluate.shapes.words import looks_of

Look = tuple[str, str]
NUM_IMAGES = 200


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, list[dict]]]:
    config = ShapesConfig(num_images=NUM_IMAGES, seed=11)
    found = []
    for index in range(NUM_IMAGES):
        made = document(config, index)
        image = made.segments[1]
        assert isinstance(image, Image)
        pixels = np.asarray(PillowImage.open(io.BytesIO(image.data)).convert("RGB"))
        found.append((pixels, made.metadata["objects"]))
    return found  # type: ignore[return-value]


def _exact(objects: list[Object], wanted: list[dict]) -> bool:
    return sorted((o.color, o.shape) for o in objects) == sorted(looks_of({"objects": wanted}))  # type: ignore


def test_every_clean_image_is_read_without_error(drawn: list) -> None:
    for pixels, wanted in drawn:
        objects = detect(pixels)
        assert _exact(objects, wanted)
        for one in objects:
            near = [o for o in wanted if abs(o["x"] - one.x) + abs(o["y"] - one.y) < 0.5]
            assert [(o["color"], o["shape"]) for o in near] == [(one.color, one.shape)]


def test_areas_are_those_of_the_shapes(drawn: list) -> None:
    """By geometry: pi r^2, (1.8 r)^2, and an equilateral triangle of circumradius 1.2 r."""
    per_radius = {"circle": np.pi, "square": 1.8**2, "triangle": 3 * 3**0.5 / 4 * 1.2**2}
    for pixels, wanted in drawn:
        if len(wanted) == 1:
            (one,) = detect(pixels)
            expected = per_radius[wanted[0]["shape"]] * wanted[0]["radius"] ** 2
            assert abs(one.area - expected) < 0.08 * expected


def _blurred(pixels: np.ndarray, radius: float = 1.0) -> np.ndarray:
    return np.asarray(PillowImage.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _noisy(pixels: np.ndarray, sigma: float = 15.0) -> np.ndarray:
    noise = np.random.default_rng(int(pixels.sum())).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _pale(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.75 + 55).astype(np.uint8)


def _jpeg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=40)
    return np.asarray(PillowImage.open(buffer))


def _halved(pixels: np.ndarray) -> np.ndarray:
    half = PillowImage.fromarray(pixels).resize((16, 16), PillowImage.Resampling.BOX)
    return np.asarray(half.resize((32, 32), PillowImage.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (_blurred, 0.99),
        (_noisy, 0.99),
        (_pale, 0.99),
        (_halved, 0.99),
        (lambda pixels: _noisy(_blurred(_pale(pixels)), 8.0), 0.99),
        (_jpeg, 0.93),
    ],
    ids=["blurred", "noisy", "pale", "halved", "all three", "jpeg"],
)
def test_damage_of_an_autoencoder_is_borne(
    drawn: list, damage: Callable[[np.ndarray], np.ndarray], least: float
) -> None:
    right = [_exact(detect(damage(pixels)), wanted) for pixels, wanted in drawn]
    assert sum(right) >= least * NUM_IMAGES


@pytest.mark.parametrize("scale", [2, 4])
def test_larger_images_are_read_alike(scale: int) -> None:
    config = ShapesConfig(num_images=30, seed=12, image_size_px=32 * scale)
    for index in range(30):
        made = document(config, index)
        image = made.segments[1]
        assert isinstance(image, Image)
        pixels = np.asarray(PillowImage.open(io.BytesIO(image.data)).convert("RGB"))
        assert _exact(detect(pixels), made.metadata["objects"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((32, 32, 3), 255, np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.full((32, 32, 3), 128, np.uint8),
        np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8),
        np.random.default_rng(1).integers(235, 256, (32, 32, 3), np.uint8),
    ],
    ids=["white", "black", "grey", "noise", "faint noise"],
)
def test_no_shape_is_seen_where_there_is_none(pixels: np.ndarray) -> None:
    assert [one for one in detect(pixels) if one.shape != "unknown"] == []


def test_a_shape_that_is_none_of_the_three_is_unknown() -> None:
    pixels = np.full((32, 32, 3), 245, np.uint8)
    pixels[14:17, 3:29] = (225, 40, 40)
    (bar,) = detect(pixels)
    assert (bar.color, bar.shape) == ("red", "unknown")


def test_two_colours_that_touch_are_two_objects() -> None:
    pixels = np.full((32, 32, 3), 245, np.uint8)
    pixels[10:22, 4:16] = (225, 40, 40)
    pixels[10:22, 16:28] = (45, 65, 225)
    found = detect(pixels)
    assert sorted((one.color, one.shape) for one in found) == [
        ("blue", "square"),
        ("red", "square"),
    ]
