"""The drawn world: a pure function of the seed, within its bounds, and as its captions say."""

import hashlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image as PillowImage

from data_pipelines.documents import Document, Image, Text
from data_pipelines.shapes_world.draws import Draws
from data_pipelines.shapes_world.scene import COLORS, SHAPES, Scene
from data_pipelines.sources.class_prompts import ClassPrompt
from data_pipelines.sources.shapes import (
    SceneWeights,
    ShapesConfig,
    describe,
    document,
    identities,
    list_shards,
    read,
)
from transfusion.config import validate


def _documents(config: ShapesConfig) -> list[Document]:
    rows = [row for shard in list_shards(config) for row in read(config, shard)]
    assert all(isinstance(row, Document) for row in rows)
    return [row for row in rows if isinstance(row, Document)]


def _caption(drawn: Document) -> str:
    assert isinstance(drawn.segments[0], Text)
    return drawn.segments[0].text


def _pixels(drawn: Document) -> np.ndarray:
    image = drawn.segments[1]
    assert isinstance(image, Image)
    return np.asarray(PillowImage.open(io.BytesIO(image.data)).convert("RGB"))


def test_an_image_depends_on_seed_and_index_alone() -> None:
    whole = _documents(ShapesConfig(num_images=50, seed=3, images_per_shard=7))
    parts = _documents(ShapesConfig(num_images=20, first_image=30, seed=3, images_per_shard=64))
    assert whole[30:] == parts
    assert len({drawn.key for drawn in whole}) == 50
    other = _documents(ShapesConfig(num_images=50, seed=4))
    assert not {drawn.segments for drawn in whole} & {drawn.segments for drawn in other}


def test_the_drawing_never_changes_unless_its_version_does() -> None:
    """Raise DRAWING_VERSION with these: latents made from the old drawing are kept by it."""
    config = ShapesConfig(num_images=200, seed=0)
    digest = hashlib.sha256()
    for drawn in _documents(config):
        digest.update(_caption(drawn).encode() + _pixels(drawn).tobytes())
    assert digest.hexdigest()[:16] == "43933286ffa9bce4"


def test_a_longer_listing_keeps_the_shards_of_a_shorter_one() -> None:
    short = identities(ShapesConfig(num_images=100, seed=0, images_per_shard=25))
    longer = identities(ShapesConfig(num_images=210, seed=0, images_per_shard=25))
    assert longer[:4] == short
    assert len(longer) == 9
    assert len(set(longer)) == 9


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"image_size_px": 64}, {"max_objects": 2}, {"weights": SceneWeights(single=1.0)}],
    ids=str,
)
def test_what_changes_a_pixel_changes_the_identity(change: dict) -> None:
    base = ShapesConfig(num_images=10, seed=0)
    changed = base.model_copy(update=change)
    assert identities(base) != identities(changed)
    assert [_pixels(d).tobytes() for d in _documents(base)] != [
        _pixels(d).tobytes() for d in _documents(changed)
    ]


def _described(**config: object) -> list[tuple[Scene, str]]:
    made = ShapesConfig(**config)
    return [describe(made, index) for index in range(made.num_images)]


def test_scenes_hold_what_the_weights_say() -> None:
    kinds = Counter(scene.kind for scene, _ in _described(num_images=2000, seed=1))
    # Three standard deviations of a count of 2,000 draws.
    for kind, share in {"single": 0.65, "count": 0.1, "group": 0.1, "relation": 0.15}.items():
        assert abs(kinds[kind] - 2000 * share) < 3 * (2000 * share * (1 - share)) ** 0.5
    for most in (1, 2, 3):
        scenes = _described(num_images=300, seed=1, max_objects=most)
        assert {len(scene.objects) for scene, _ in scenes} == set(range(1, most + 1))


def test_every_look_is_drawn_about_as_often() -> None:
    scenes = _described(num_images=1800, seed=2, max_objects=1)
    looks = Counter((scene.objects[0].color, scene.objects[0].shape) for scene, _ in scenes)
    assert set(looks) == {(color, shape) for color in COLORS for shape in SHAPES}
    assert min(looks.values()) > 65
    assert max(looks.values()) < 140


@pytest.mark.parametrize("size", [32, 50, 256])
def test_objects_touch_neither_the_edge_nor_one_another(size: int) -> None:
    for drawn in _documents(ShapesConfig(num_images=60, seed=5, image_size_px=size)):
        pixels = _pixels(drawn).astype(int)
        assert pixels.shape == (size, size, 3)
        background = pixels[0, 0]
        assert background.min() > 225
        ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (ring == background).all()


def test_relations_in_captions_hold_in_the_scene() -> None:
    axes = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
    seen = set()
    for scene, caption in _described(num_images=400, seed=6, weights=SceneWeights(relation=3.0)):
        if scene.kind == "relation":
            word = next(word for word in axes if word in caption)
            seen.add(word)
            axis, sign = axes[word]
            where = {f"{one.color} {one.shape}": getattr(one, axis) for one in scene.objects}
            first, second = sorted(where, key=caption.index)
            assert sign * (where[first] - where[second]) > 5, caption
    assert seen == set(axes)


def test_captions_are_phrased_in_several_ways_and_the_plainest_is_commonest() -> None:
    captions = Counter(caption for _, caption in _described(num_images=3000, seed=7, max_objects=1))
    red_circles = {text: n for text, n in captions.items() if "red" in text and "circle" in text}
    assert len(red_circles) >= 8
    assert max(red_circles, key=red_circles.__getitem__) == "a red circle"


def test_draws_are_uniform_and_do_not_run_dry() -> None:
    draws = Draws("test", 0, 0)
    values = np.array([draws.uniform() for _ in range(5000)])
    assert values.min() >= 0
    assert values.max() < 1
    # The mean of 5,000 uniforms is within 4 standard errors of a half.
    assert abs(values.mean() - 0.5) < 4 / (12 * 5000) ** 0.5
    assert len(set(values)) == 5000
    assert sorted(Draws("test", 0, 1).shuffled(range(20))) == list(range(20))


def test_a_config_that_cannot_be_drawn_is_refused_with_a_remedy() -> None:
    values = {"num_images": 1, "seed": 0, "max_objects": 1, "weights": {"single": 0.0}}
    _, faults = validate(ShapesConfig, values, where="job.yaml: stages.images.config")
    assert len(faults) == 1
    assert "weights.single" in faults[0]
    nothing = dict.fromkeys(("single", "count", "group", "relation"), 0.0)
    _, faults = validate(ShapesConfig, {"num_images": 1, "weights": nothing}, where="x")
    assert len(faults) == 2
    assert any("seed" in fault for fault in faults)


def test_one_document_is_what_a_shard_holds() -> None:
    config = ShapesConfig(num_images=3, seed=9)
    assert [document(config, index) for index in range(3)] == _documents(config)


def test_classes_are_the_same_drawings_with_the_prompt_of_their_class() -> None:
    plain = ShapesConfig(num_images=300, seed=2, max_objects=1)
    classes = plain.model_copy(
        update={"class_prompt": ClassPrompt(template="Please draw {label} now")}
    )
    drawn, same = _documents(classes), _documents(plain)
    assert [_pixels(one).tobytes() for one in drawn] == [_pixels(one).tobytes() for one in same]
    assert {_caption(one) for one in drawn} == {
        f"Please draw {color} {shape} now" for color in COLORS for shape in SHAPES
    }
    assert set(identities(classes)).isdisjoint(identities(plain))


def test_a_class_prompt_asks_for_scenes_of_one_object() -> None:
    values = {"num_images": 5, "seed": 0, "class_prompt": {}}
    _, (fault,) = validate(ShapesConfig, values, where="x")
    assert "max_objects is 3; set it to 1" in fault
