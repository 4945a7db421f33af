"""The perceptual hash: nearly equal pictures are near, others far, and the bits are those of the definition."""

import io

import numpy as np
from PIL import Image

from data_pipelines.perceptual_hash import perceptual_hash
from tests.data_pipelines.pictures import picture


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def test_the_same_picture_in_another_size_or_file_is_within_six_bits() -> None:
    for seed in range(12):
        whole = picture(seed)
        hashed = perceptual_hash(whole)
        for side_px in (64, 128, 400):
            resized = np.asarray(Image.fromarray(whole).resize((side_px, side_px)))
            assert distance(hashed, perceptual_hash(resized)) <= 6
        assert distance(hashed, perceptual_hash(jpeg(whole, 40))) <= 6
        brighter = np.clip(whole.astype(int) + 12, 0, 255).astype(np.uint8)
        assert distance(hashed, perceptual_hash(brighter)) <= 6


def test_other_pictures_are_far() -> None:
    hashes = [perceptual_hash(picture(seed)) for seed in range(24)]
    apart = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 12
    assert 28 < np.mean(apart) < 36


def test_the_bits_are_those_of_the_cosine_transform() -> None:
    """A second way to the definition: sums of cosines in floating point."""
    for seed in range(8):
        small = (
            Image.fromarray(picture(seed)).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
        )
        luma = np.asarray(small, dtype=np.float64)
        places = np.cos(np.pi / 32 * np.outer(np.arange(32), np.arange(32) + 0.5))
        spectrum = np.einsum("un,nm,vm->uv", places, luma, places)[:8, :8]
        bits = "".join("01"[int(value > np.median(spectrum))] for value in spectrum.reshape(-1))
        assert distance(perceptual_hash(picture(seed)), int(bits, 2)) <= 1


def test_flat_pictures_have_one_hash() -> None:
    flat = {perceptual_hash(np.full((40, 40, 3), level, np.uint8)) for level in (1, 100, 255)}
    assert flat == {1 << 63}
