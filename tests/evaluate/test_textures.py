"""The reader of striped objects: right on what is drawn by other means, nearly so on blurred and noisy images."""

import colorsys
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFilter

from data_pipelines.documents import Image, Text
from data_pipelines.sources.textures import TexturesConfig, document
from transfusion.evaluate.captions import Described
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.textures.reader import Look, read_look
from transfusion.evaluate.textures.score import error_metrics, errors_of
from transfusion.evaluate.textures.words import Reading, make_prompts, read_caption
from transfusion.evaluate.textures.world import WORLD

NUM_IMAGES = 200


def apart(a: float | None, b: float, turn: float) -> float:
    """By unit vectors, not by remainders."""
    assert a is not None
    turns = np.exp(2j * np.pi * np.array([a, b]) / turn)
    return abs(math.degrees(np.angle(turns[0] / turns[1]))) * turn / 360


def by_hand(
    hue_deg: float,
    direction_deg: float,
    *,
    ground: tuple[int, int, int] = (255, 255, 255),
    value: float = 0.9,
    saturation: float = 0.8,
) -> np.ndarray:
    """A tilted square, 22 px across, at eight times its size by polygons, and shrunk; hue by the standard library.

    Stripes are bands with sharp edges, 7 px from one to the next.
    """
    scale, side = 8, 32 * 8
    base, dark = (
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue_deg / 360, saturation, of))
        for of in (value, 0.5 * value)
    )
    image, mask = PillowImage.new("RGB", (side, side), base), PillowImage.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    angle = math.radians(direction_deg)
    along = np.array([math.cos(angle), -math.sin(angle)])
    across = np.array([math.sin(angle), math.cos(angle)])
    for number in range(-4, 5):
        near = side / 2 + across * number * 7 * scale
        far = near + across * 3.5 * scale
        corners = [near - along * side, near + along * side, far + along * side, far - along * side]
        pen.polygon([tuple(corner) for corner in corners], fill=dark)
    tilted = [
        (
            side / 2 + 11 * scale * math.cos(a + 0.3) * 1.3,
            side / 2 + 11 * scale * math.sin(a + 0.3) * 1.3,
        )
        for a in np.arange(4) * np.pi / 2
    ]
    ImageDraw.Draw(mask).polygon(tilted, fill=255)
    canvas = PillowImage.new("RGB", (side, side), ground)
    canvas.paste(image, mask=mask)
    return np.asarray(canvas.resize((32, 32), PillowImage.Resampling.BOX))


@settings(max_examples=60, deadline=None)
@given(hue=st.floats(0, 359.9), direction=st.floats(0, 179.9))
def test_an_object_drawn_by_other_means_is_read_within_a_few_degrees(
    hue: float, direction: float
) -> None:
    look = read_look(by_hand(hue, direction))
    # The library's hue is hexagonal: at most 1.2 degrees from the circular one.
    assert apart(look.hue_deg, hue, 360) < 2
    assert apart(look.direction_deg, direction, 180) < 4


@pytest.mark.parametrize(("direction", "name"), [(0, "level"), (45, "rising"), (90, "upright")])
def test_directions_are_told_counter_clockwise_from_level(direction: int, name: str) -> None:
    """Built from indices: rows run down, so what rises to the right has row + column constant."""
    row, column = np.mgrid[:32, :32]
    place = {"level": row * math.sqrt(2), "rising": row + column, "upright": column * math.sqrt(2)}[
        name
    ]
    light = 0.7 + 0.3 * np.cos(place / math.sqrt(2) * 2 * np.pi / 8)
    image = (light[..., None] * np.array([220, 40, 40])).astype(np.uint8)
    assert apart(read_look(image).direction_deg, direction, 180) < 0.5


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, dict[str, Any], str]]:
    config = TexturesConfig(num_images=NUM_IMAGES, seed=11)
    found = []
    for index in range(NUM_IMAGES):
        made = document(config, index)
        text, image = made.segments
        assert isinstance(text, Text)
        assert isinstance(image, Image)
        pixels = np.asarray(PillowImage.open(io.BytesIO(image.data)).convert("RGB"))
        found.append((pixels, dict(made.metadata), text.text))
    return found


def _blurred(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(PillowImage.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7)))


def _noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(int(pixels.sum())).normal(0, 10, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "hue_deg", "direction_deg"),
    [(lambda pixels: pixels, 1.0, 1.0), (_blurred, 2.0, 6.0), (_noisy, 4.0, 4.0)],
    ids=["clean", "blurred", "noisy"],
)
def test_drawn_images_are_read_within_a_few_degrees(
    drawn: list, change: Any, hue_deg: float, direction_deg: float
) -> None:
    for pixels, scene, _ in drawn:
        look = read_look(change(pixels))
        assert apart(look.hue_deg, scene["hue_deg"], 360) < hue_deg
        assert apart(look.direction_deg, scene["direction_deg"], 180) < direction_deg


@pytest.mark.parametrize("ground", [(255, 248, 248), (240, 240, 248), (238, 245, 238)], ids=str)
def test_a_tinted_ground_hardly_moves_the_hue(ground: tuple[int, int, int]) -> None:
    for hue in range(0, 360, 30):
        look = read_look(by_hand(hue, 70, ground=ground))
        assert apart(look.hue_deg, hue, 360) < 1.5
        assert apart(look.direction_deg, 70, 180) < 4


def test_outlines_are_no_stripes() -> None:
    """A plain square's own edges are level and upright; its stripes at 45 degrees must not be pulled there."""
    image = np.full((32, 32, 3), 250, np.uint8)
    row, column = np.mgrid[6:26, 6:26]
    light = 0.9 + 0.1 * np.cos((row + column) / math.sqrt(2) * 2 * np.pi / 7)
    image[6:26, 6:26] = (light[..., None] * np.array([60, 60, 220])).astype(np.uint8)
    assert apart(read_look(image).direction_deg, 45, 180) < 2


def test_where_there_is_nothing_nothing_is_read() -> None:
    grey = np.full((32, 32, 3), 240, np.uint8)
    assert read_look(grey) == Look(None, None)
    plain = grey.copy()
    plain[8:24, 8:24] = (220, 40, 40)
    look = read_look(plain)
    assert look.direction_deg is None
    assert apart(look.hue_deg, 0, 360) < 0.1


def test_errors_go_the_short_way_round_and_the_unread_is_a_guess() -> None:
    near = errors_of(350.0, 175.0, true_hue_deg=10.0, true_direction_deg=5.0)
    assert (near.hue_deg, near.direction_deg, near.read) == (20.0, 10.0, True)
    unread = errors_of(None, None, true_hue_deg=10.0, true_direction_deg=5.0)
    assert (unread.hue_deg, unread.direction_deg, unread.read) == (90.0, 45.0, False)
    assert error_metrics("t", [near, unread]) == {
        "t.hue_error_deg": 55.0,
        "t.hue_within_15": 0.0,
        "t.direction_error_deg": 27.5,
        "t.direction_within_15": 0.5,
        "t.read": 0.5,
    }


def test_captions_of_the_source_are_read_back_and_prompts_are_in_their_words(drawn: list) -> None:
    said = {text for _, _, text in drawn}
    for _, scene, text in drawn:
        reading = read_caption(text)
        assert apart(reading.hue_deg, scene["hue_deg"], 360) <= 2.5
        assert apart(reading.direction_deg, scene["direction_deg"], 180) <= 2.5
    digits = str.maketrans("0123456789", "0000000000")
    assert {one.text.translate(digits) for one in make_prompts(64, 0)} == {
        text.translate(digits) for text in said
    }
    assert read_caption("a circle of hue 370 with stripes at 200 degrees") == Reading(None, None)
    assert read_caption("a red circle") == Reading(None, None)


def test_prompts_cover_both_turns_and_are_their_own_reading() -> None:
    prompts = make_prompts(72, 1)
    assert {one.hue_deg for one in prompts} == set(range(0, 360, 5))
    assert {one.direction_deg for one in prompts} == set(range(0, 180, 5))
    assert all(
        read_caption(one.text) == Reading(float(one.hue_deg), float(one.direction_deg))
        for one in prompts
    )
    assert make_prompts(72, 1) == prompts
    assert make_prompts(72, 2) != prompts


def test_drawings_are_judged_by_what_was_asked() -> None:
    prompts = WORLD.make_prompts(EvaluateConfig(seed=0, num_single_object=8))
    assert not WORLD.make_prompts(EvaluateConfig(seed=0, tasks=("counting",)))
    pictures = [
        by_hand((one.hue_deg + 40 * (index % 2)) % 360, (one.direction_deg + 30) % 180)
        for index, one in enumerate(prompts)
    ]
    judged = WORLD.judge_drawings(prompts, pictures)
    assert judged.metrics["textures.hue_error_deg"] == pytest.approx(20, abs=2)
    assert judged.metrics["textures.hue_within_15"] == 0.5
    assert judged.metrics["textures.direction_error_deg"] == pytest.approx(30, abs=3)
    assert [record["correct"] for record in judged.records] == [False] * 8
    assert judged.records[0]["reason"].startswith("hue ")


def test_descriptions_are_judged_by_the_image_s_own_caption() -> None:
    reference = "a circle of hue 100 with stripes at 010 degrees"
    described = [
        Described("a", reference, "a square of hue 110 with stripes at 170 degrees"),
        Described("b", reference, "a circle of a circle of"),
        Described("c", "a photo of a dog", "a dog"),
    ]
    judged = WORLD.judge_captions(described)
    assert judged.metrics["textures.caption.hue_error_deg"] == 50.0
    assert judged.metrics["textures.caption.direction_error_deg"] == (20 + 45) / 2
    assert judged.records[2] == {}


def test_ceilings_are_the_reader_on_known_scenes(drawn: list) -> None:
    scenes, images = [scene for _, scene, _ in drawn], [pixels for pixels, _, _ in drawn]
    assert all(WORLD.knows(scene) for scene in scenes)
    assert not WORLD.knows({"objects": []})
    metrics = WORLD.ceiling("real", scenes, images)
    assert metrics["textures.real.hue_within_15"] == 1.0
    assert metrics["textures.real.hue_error_deg"] < 0.5
    assert metrics["textures.real.direction_error_deg"] < 0.5
