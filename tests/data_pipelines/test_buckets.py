"""Crops of several aspects: each image takes the nearest, and each aspect has its own batches."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.crop import center_crop_resize, covering_size, nearest_size
from data_pipelines.documents import Document
from data_pipelines.encode_images.batches import Batch, micro_batches
from data_pipelines.encode_images.config import AspectBuckets, EncodeImagesConfig
from data_pipelines.images import LoadedImage
from data_pipelines.preparation import Facts, Prepared
from data_pipelines.shards import in_process
from tests.pipeline import make, make_autoencoder
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import latent_rows
from transfusion.artifacts.shards import index_entries, row_entries
from transfusion.artifacts.tables import load_table
from transfusion.config import validate

SIZES = ["32x32", "24x40", "40x24"]


def test_counted_buckets_keep_the_area_and_spread_evenly_by_logarithm() -> None:
    sizes = AspectBuckets(count=5, max_aspect=2.0, multiple_px=8).sizes_px(256)
    assert sizes[2] == (256, 256)
    logs = [math.log(height / width) for height, width in sizes]
    assert np.allclose(np.diff(logs), math.log(4) / 4, atol=0.06)
    assert sizes == tuple((width, height) for height, width in sizes[::-1])
    for height, width in sizes:
        assert height % 8 == width % 8 == 0
        assert abs(height * width / 256**2 - 1) < 0.06
    assert AspectBuckets(count=1).sizes_px(64) == ((64, 64),)


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ({"sizes": ["32by32"]}, "is no size"),
        ({"sizes": ["0x32"]}, "is no size"),
        ({"sizes": ["64x64"]}, "within a quarter"),
        ({"sizes": ["32x32"], "count": 3}, "either sizes or count"),
        ({}, "either sizes or count"),
        ({"count": 3, "multiple_px": 64}, "mend the size or multiple_px"),
    ],
)
def test_buckets_that_cannot_be_meant_are_refused(buckets: dict, said: str) -> None:
    config, faults = validate(
        EncodeImagesConfig, {"image_size_px": 32, "buckets": buckets}, where="config"
    )
    assert config is None
    assert said in " ".join(faults)


def test_without_buckets_the_identity_is_what_it_was() -> None:
    assert EncodeImagesConfig(image_size_px=32).identity() == {"image_size_px": 32}
    assert EncodeImagesConfig(image_size_px=32).sizes_px == ((32, 32),)


def test_how_many_shards_may_fail_moves_the_artifact_and_no_shard() -> None:
    config = EncodeImagesConfig(image_size_px=32, max_quarantined_shards=2)
    assert config.identity() == {"image_size_px": 32, "max_quarantined_shards": 2}
    assert config.shard_identity() == {"image_size_px": 32}


sides = st.integers(16, 400)


@given(sides, sides, st.integers(8, 64), st.integers(8, 64))
def test_a_crop_has_the_size_and_touches_two_opposite_edges(
    height: int, width: int, out_height: int, out_width: int
) -> None:
    down, across = np.mgrid[:height, :width]
    pixels = np.stack([down * 255 // height, across * 255 // width, down * 0], -1).astype(np.uint8)
    crop = center_crop_resize(pixels, (out_height, out_width))
    assert crop.shape == (out_height, out_width, 3)
    middle = crop[:, :, :2].reshape(-1, 2).astype(float).mean(0)
    expected = pixels[:, :, :2].reshape(-1, 2).astype(float).mean(0)
    # Half a pixel off the middle at most, and the rounding of levels.
    assert np.abs(middle - expected).max() < 2 + 255 / min(height, width)
    covering = covering_size((height, width), (out_height, out_width))
    assert covering[0] >= out_height
    assert covering[1] >= out_width
    assert min(covering[0] - out_height, covering[1] - out_width) <= 1


@given(sides, sides)
def test_the_nearest_size_is_nearest_by_the_ratio_of_aspects(height: int, width: int) -> None:
    sizes = ((32, 32), (24, 40), (40, 24), (16, 64))
    chosen = nearest_size((height, width), sizes)

    def apart(size: tuple[int, int]) -> float:
        ratio = (size[0] / size[1]) / (height / width)
        return max(ratio, 1 / ratio)

    assert apart(chosen) <= min(apart(size) for size in sizes) + 1e-9


def folder(root: Path) -> Path:
    root.mkdir()
    lines = []
    shapes = [(40, 40), (60, 100), (100, 60), (44, 40), (30, 50), (200, 40)]
    for number in range(24):
        height, width = shapes[number % len(shapes)]
        data = io.BytesIO()
        Image.new("RGB", (width, height), (10 * number, 0, 90)).save(data, "PNG")
        (root / f"{number:02d}.png").write_bytes(data.getvalue())
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": "a picture"}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def encode(root: Path, place: Path, **changed: object) -> Artifact:
    return make(
        root,
        "data_pipelines.encode_images",
        {"image_size_px": 32, "micro_batch": 3} | changed,
        {
            "images": make(root, "data_pipelines.sources.image_folder", {"path": str(place)}),
            "autoencoder": make_autoencoder(root),
        },
        launch=in_process,
    )


def test_rows_carry_the_shape_of_their_bucket(tmp_path: Path) -> None:
    latents = encode(tmp_path / "store", folder(tmp_path / "images"), buckets={"sizes": SIZES})
    expected = {(40, 40): (8, 8), (44, 40): (8, 8), (60, 100): (6, 10), (30, 50): (6, 10)}
    expected |= {(100, 60): (10, 6), (200, 40): (10, 6)}
    for shard_id, entry in row_entries(latents).items():
        rows = latent_rows(load_table(latents.store, entry), 8)
        assert len(rows) == 24
        for row in rows:
            shape = expected[row.original_height, row.original_width]
            assert row.mean.shape[1:] == row.std.shape[1:] == shape
        index = load_table(latents.store, index_entries(latents)[shard_id])
        sizes = set(zip(index["height"].to_pylist(), index["width"].to_pylist(), strict=True))
        assert sizes == set(expected.values())
    assert latents.metadata["latent_sizes"] == [[8, 8], [6, 10], [10, 6]]
    assert "latent_height" not in latents.metadata


def test_a_square_comes_out_of_its_bucket_as_without_buckets(tmp_path: Path) -> None:
    place = folder(tmp_path / "images")
    square = encode(tmp_path / "square", place)
    several = encode(tmp_path / "several", place, buckets={"sizes": SIZES})

    def squares(latents: Artifact) -> dict[str, bytes]:
        (entry,) = row_entries(latents).values()
        rows = latent_rows(load_table(latents.store, entry), 8)
        return {r.key: r.mean.tobytes() for r in rows if r.original_height in (40, 44)}

    assert squares(square) == squares(several)
    assert len(squares(square)) == 8


def test_batches_are_whole_and_of_one_shape() -> None:
    def image(number: int, height: int) -> LoadedImage:
        pixels = np.full((height, 8, 3), number + 1, np.uint8)
        facts = Facts(bytes(32), 0, height, 8, ())
        return LoadedImage(
            document=Document(str(number), ()), image_index=0, prepared=Prepared(pixels, facts)
        )

    batches = list(micro_batches([image(n, 8 if n % 3 else 16) for n in range(11)], 4))
    seen = []
    for batch in batches:
        assert isinstance(batch, Batch)
        assert len(batch.pixels) == 4
        for row, pixels in zip(batch.rows, batch.pixels, strict=False):
            assert (pixels == int(row.key) + 1).all()
            seen.append(row.key)
        assert (batch.pixels[len(batch.rows) :] == 0).all()
    assert sorted(map(int, seen)) == list(range(11))
    assert [len(batch.rows) for batch in batches] == [4, 4, 3]
