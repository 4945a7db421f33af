"""Decoded images: the very pixels that were drawn, with what the source says of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.shards import in_process
from data_pipelines.sources.source import open_listing
from tests.pipeline import make
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels

SHAPES = "data_pipelines.sources.shapes"


def pixels(root: Path, num_images: int, **config: object) -> tuple[Artifact, Artifact]:
    images = make(root, SHAPES, {"num_images": num_images, "seed": 3, "images_per_shard": 100})
    made = make(
        root,
        "data_pipelines.pixels",
        {"image_size_px": 32} | config,
        {"images": images},
        launch=in_process,
    )
    return images, made


def test_pixels_caption_and_scene_are_those_of_the_source(tmp_path: Path) -> None:
    import io

    images, made = pixels(tmp_path / "store", 12)
    listing = open_listing(images)
    documents = {d.key: d for shard in listing.shards for d in listing.read(shard)}
    rows = read_pixels(made)
    assert [row.key for row in rows] == sorted(documents)
    for row in rows:
        text, image = documents[row.key].segments
        expected = np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"))
        assert (row.pixels == expected).all()
        assert row.caption == text.text
        assert row.metadata == documents[row.key].metadata


def test_images_are_taken_evenly_from_the_shards_up_to_the_limit(tmp_path: Path) -> None:
    _, made = pixels(tmp_path / "store", 400, max_images=200)
    keys = [int(row.key.rpartition("/")[2]) for row in read_pixels(made)]
    assert len(keys) <= 201
    assert len(keys) >= 198
    assert len({key // 100 for key in keys}) >= 3
    _, few = pixels(tmp_path / "store", 400, max_images=5)
    assert len(read_pixels(few)) == 5


def test_a_larger_side_is_resampled(tmp_path: Path) -> None:
    _, made = pixels(tmp_path / "store", 3, image_size_px=16)
    assert {row.pixels.shape for row in read_pixels(made)} == {(16, 16, 3)}
