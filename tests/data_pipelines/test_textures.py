"""The world of striped objects: a pure function of the seed, within its bounds, and as its captions say."""

import colorsys
import hashlib
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from data_pipelines.documents import Document, Image, Text
from data_pipelines.sources.textures import (
    TexturesConfig,
    describe,
    document,
    identities,
    list_shards,
    read,
)
from data_pipelines.textures_world.drawing import rgb
from data_pipelines.textures_world.scene import caption


def _documents(config: TexturesConfig) -> list[Document]:
    rows = [row for shard in list_shards(config) for row in read(config, shard)]
    assert all(isinstance(row, Document) for row in rows)
    return [row for row in rows if isinstance(row, Document)]


def _pixels(drawn: Document) -> np.ndarray:
    image = drawn.segments[1]
    assert isinstance(image, Image)
    return np.asarray(PillowImage.open(io.BytesIO(image.data)).convert("RGB"))


def test_an_image_depends_on_seed_and_index_alone() -> None:
    whole = _documents(TexturesConfig(num_images=50, seed=3, images_per_shard=7))
    parts = _documents(TexturesConfig(num_images=20, first_image=30, seed=3, images_per_shard=64))
    assert whole[30:] == parts
    assert len({drawn.key for drawn in whole}) == 50
    other = _documents(TexturesConfig(num_images=50, seed=4))
    assert not {drawn.segments for drawn in whole} & {drawn.segments for drawn in other}


def test_the_drawing_never_changes_unless_its_version_does() -> None:
    """Raise DRAWING_VERSION with these: latents made from the old drawing are kept by it."""
    digest = hashlib.sha256()
    for drawn in _documents(TexturesConfig(num_images=200, seed=0)):
        assert isinstance(drawn.segments[0], Text)
        digest.update(drawn.segments[0].text.encode() + _pixels(drawn).tobytes())
    assert digest.hexdigest()[:16] == "08a51ce087809432"


def test_a_longer_listing_keeps_the_shards_of_a_shorter_one() -> None:
    short = identities(TexturesConfig(num_images=100, seed=0, images_per_shard=25))
    longer = identities(TexturesConfig(num_images=210, seed=0, images_per_shard=25))
    assert longer[:4] == short
    assert len(set(longer)) == 9


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size_px": 64}], ids=str)
def test_what_changes_a_pixel_changes_the_identity(change: dict) -> None:
    base = TexturesConfig(num_images=10, seed=0)
    assert identities(base) != identities(base.model_copy(update=change))


def test_captions_say_hue_and_direction_to_five_degrees() -> None:
    for index in range(300):
        texture = describe(TexturesConfig(num_images=300, seed=2), index)
        found = re.fullmatch(
            r"a (circle|square|triangle) of hue (\d{3}) with stripes at (\d{3}) degrees",
            caption(texture),
        )
        assert found is not None
        assert found[1] == texture.shape
        for said, exact, turn in (
            (int(found[2]), texture.hue_deg, 360),
            (int(found[3]), texture.direction_deg, 180),
        ):
            assert said % 5 == 0
            assert 0 <= said < turn
            apart = abs(said - exact)
            assert min(apart, turn - apart) <= 2.5


def test_hues_and_directions_fill_their_turns_evenly() -> None:
    config = TexturesConfig(num_images=2400, seed=5)
    drawn = [describe(config, index) for index in range(2400)]
    for turns in ([one.hue_deg / 360 for one in drawn], [one.direction_deg / 180 for one in drawn]):
        counts = np.histogram(turns, bins=24, range=(0, 1))[0]
        # Four standard deviations of a count of 100.
        assert abs(counts - 100).max() < 40


@given(st.floats(0, 360, exclude_max=True))
def test_a_colour_has_the_hue_that_it_is_named_by(hue_deg: float) -> None:
    """Hexagonal hue, by the standard library, is at most 1.2 degrees from circular; rounding adds a half."""
    red, green, blue = rgb(hue_deg)
    found = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)[0] * 360
    apart = abs(found - hue_deg)
    assert min(apart, 360 - apart) < 1.7
    assert abs(red + green + blue - 3 * 140) <= 1


@pytest.mark.parametrize("size", [32, 50, 256])
def test_objects_stay_off_the_edge_of_a_light_ground(size: int) -> None:
    for drawn in _documents(TexturesConfig(num_images=60, seed=5, image_size_px=size)):
        pixels = _pixels(drawn).astype(int)
        assert pixels.shape == (size, size, 3)
        background = pixels[0, 0]
        assert background.min() > 225
        ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (ring == background).all()


def test_one_document_is_what_a_shard_holds() -> None:
    config = TexturesConfig(num_images=3, seed=9)
    assert [document(config, index) for index in range(3)] == _documents(config)
