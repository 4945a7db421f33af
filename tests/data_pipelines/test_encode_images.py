"""Latents of images: right, reproducible to the byte, every image accounted for, nothing encoded twice."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.encode_images.decoding import decoding
from data_pipelines.encode_images.shard import EncodeShard
from data_pipelines.perceptual_hash import perceptual_hash
from data_pipelines.shards import in_process, on_ray
from tests.hostile import write_images
from tests.pipeline import make, make_autoencoder
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_INDEX, LatentRow, latent_rows
from transfusion.artifacts.pixels import read_pixels
from transfusion.artifacts.shards import index_entries, read_rejects, row_entries
from transfusion.artifacts.tables import load_table
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.errors import ArtifactError
from transfusion.resources import PoolResources, Resources

ENCODE = "data_pipelines.encode_images"
SHAPES = "data_pipelines.sources.shapes"


def shapes(root: Path, num_images: int = 20) -> Artifact:
    return make(root, SHAPES, {"num_images": num_images, "seed": 3, "images_per_shard": 8})


def encode(
    root: Path, images: Artifact, launch: object = in_process, **changed: object
) -> Artifact:
    config = {"image_size_px": 32, "micro_batch": 8} | changed
    return make(
        root,
        ENCODE,
        config,
        {"images": images, "autoencoder": make_autoencoder(root)},
        launch=launch,
    )


def rows_of(latents: Artifact) -> list[LatentRow]:
    return [
        row
        for entry in row_entries(latents).values()
        for row in latent_rows(load_table(latents.store, entry), 8)
    ]


def test_a_latent_is_the_posterior_of_its_image(tmp_path: Path) -> None:
    root = tmp_path / "store"
    images = shapes(root)
    latents = encode(root, images)
    pixels = make(
        root, "data_pipelines.pixels", {"image_size_px": 32}, {"images": images}, launch=in_process
    )
    autoencoder = Autoencoder.load(latents.input("autoencoder").folder())
    rows = {row.key: row for row in rows_of(latents)}
    assert len(rows) == 20
    for pixel in read_pixels(pixels):
        row = rows[pixel.key]
        alone = autoencoder.encode(torch.from_numpy(pixel.pixels.copy())[None])
        np.testing.assert_allclose(row.mean, alone.mean[0].numpy(), atol=2e-3, rtol=2e-3)
        np.testing.assert_allclose(row.std, alone.std[0].numpy(), atol=2e-3, rtol=2e-3)
        assert row.sha256 == pixel.sha256
        assert row.phash == perceptual_hash(pixel.pixels)
        assert (row.original_height, row.original_width) == (32, 32)
    for shard_id, entry in index_entries(latents).items():
        index = load_table(latents.store, entry)
        whole = load_table(latents.store, row_entries(latents)[shard_id], list(LATENTS_INDEX))
        assert index == whole
    assert latents.metadata["latent_channels"] == 8
    assert (latents.metadata["latent_height"], latents.metadata["latent_width"]) == (8, 8)


def test_the_same_bytes_whatever_was_there_before(tmp_path: Path) -> None:
    """A shard that was made alone, in another order or beside others has the same file."""
    whole = encode(tmp_path / "a", shapes(tmp_path / "a"))
    encode(tmp_path / "b", shapes(tmp_path / "b", 8))
    grown = encode(tmp_path / "b", shapes(tmp_path / "b", 20))
    assert whole.manifest.digest == grown.manifest.digest
    files = [{f.name: f.sha256 for f in a.manifest.content.files} for a in (whole, grown)]
    assert files[0] == files[1]


def test_a_run_that_finds_all_shards_encodes_zero_images_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    first = encode(root, shapes(root))

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(Autoencoder, "encode", refuse)
    with caplog.at_level(logging.INFO):
        again = encode(root, shapes(root), launch=refuse)
    assert again.manifest.digest == first.manifest.digest
    assert "encode_images: all 3 shards cached, 0 images encoded" in caplog.text
    assert again.manifest.timings["images encoded"] == 0


def test_another_option_that_changes_latents_makes_new_shards(tmp_path: Path) -> None:
    root = tmp_path / "store"
    images = shapes(root)
    launched: list[int] = []

    def watch(factory, tasks, resources):
        launched.append(len(tasks))
        return in_process(factory, tasks, resources)

    encode(root, images, launch=watch)
    encode(root, images, launch=watch, micro_batch=4)
    encode(root, images, launch=watch, precision="bf16")
    encode(root, images, launch=watch, limits={"min_side_px": 8})
    encode(root, images, launch=watch)
    assert launched == [3, 3, 3, 3]


def folder(root: Path) -> Path:
    """Ten images with captions, three of which are none."""
    root.mkdir()
    lines = []
    for index in range(10):
        name = f"{index}.png"
        image = Image.new("RGB", (40 + index, 32), (25 * index, 0, 200))
        data = io.BytesIO()
        image.save(data, "PNG")
        content = data.getvalue()
        if index == 3:
            content = content[: len(content) // 2]
        if index == 5:
            content = b"<html>not found</html>"
        if index == 7:
            small = io.BytesIO()
            Image.new("RGB", (1, 1)).save(small, "PNG")
            content = small.getvalue()
        (root / name).write_bytes(content)
        lines.append(json.dumps({"file_name": name, "text": f"picture {index}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def test_every_image_that_is_none_is_named_with_its_reason_and_leaves_the_plan(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    place = folder(tmp_path / "images")
    images = make(root, "data_pipelines.sources.image_folder", {"path": str(place)})
    latents = encode(root, images)
    outcomes = latents.manifest.content.outcomes
    assert (outcomes.input, outcomes.written) == (10, 7)
    assert sum(outcomes.rejected.values()) == 3
    rejects = read_rejects(latents).to_pylist()
    assert len(rejects) == 3
    for number in (3, 5, 7):
        assert any(f"{number}.png" in row["detail"] + row["key"] for row in rejects)
    sizes = {(row.original_height, row.original_width) for row in rows_of(latents)}
    assert sizes == {(32, 40 + i) for i in range(10) if i not in (3, 5, 7)}

    tokenizer = make(root, "data_pipelines.tokenizer", {"vocab_size": 400}, {"images": _docs(root)})
    tokens = make(
        root,
        "data_pipelines.tokenize_text",
        {},
        {"documents": images, "tokenizer": tokenizer},
        launch=in_process,
    )
    mixture = make(
        root,
        "data_pipelines.mix",
        {
            "sources": {"pairs": {"latents": "latents", "tokens": "tokens"}},
            "sequence_length": 128,
            "sequences_per_micro_batch": 2,
            "lanes": 1,
            "num_steps": 4,
            "seed": 0,
            "held_out_fraction": 0.0,
        },
        {"latents": latents, "tokens": tokens},
    )
    assert mixture.manifest.content.outcomes.model_dump() == {
        "input": 10, "written": 7, "filtered": {"image_missing": 3}, "rejected": {},
    }  # fmt: skip


def _docs(root: Path) -> Artifact:
    return make(root, "data_pipelines.sources.python_docs", {})


def test_a_size_that_the_autoencoder_cannot_halve_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with pytest.raises(ArtifactError, match="multiples of 4"):
        encode(root, shapes(root), image_size_px=30)


def test_a_shard_that_fails_is_tried_again_and_then_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    images = shapes(root)
    make_one, failures = EncodeShard.make, []

    def flaky(self, task):
        if not failures:
            failures.append(task)
            raise OSError("the disk sneezed")
        return make_one(self, task)

    monkeypatch.setattr(EncodeShard, "make", flaky)
    latents = encode(root, images)
    assert "attempt 1 of 3" in caplog.text
    assert "the disk sneezed" in caplog.text
    assert latents.manifest.content.outcomes.written == 20

    def broken(self, task):
        raise OSError("the disk is gone")

    monkeypatch.setattr(EncodeShard, "make", broken)
    with pytest.raises(ArtifactError, match=r"shard shapes:.*the disk is gone"):
        encode(root, images, micro_batch=2)


@pytest.mark.ray
def test_decoding_in_an_actor_of_its_own_comes_to_the_same_bytes(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = encode(tmp_path / "here", shapes(tmp_path / "here"))
    split = PoolResources(num_actors=1, decoding="split", decode_cpus=1)
    monkeypatch.setattr("tests.pipeline.Resources", lambda: Resources(pool=split))
    there = encode(tmp_path / "there", shapes(tmp_path / "there"), launch=on_ray)
    assert there.manifest.digest == here.manifest.digest
    files = [{f.name: f.sha256 for f in a.manifest.content.files} for a in (here, there)]
    assert files[0] == files[1]
    assert there.manifest.timings["encoder busy share"] > 0


@pytest.mark.ray
def test_an_actor_that_decodes_and_finds_no_place_is_told_of_in_time(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipelines.encode_images.decoding.PLACED_WITHIN_S", 1.0)
    config = EncodeImagesConfig(image_size_px=32)
    resources = PoolResources(decoding="split", decode_cpus=500)
    with pytest.raises(ArtifactError, match="no node has 500 CPUs for an actor that decodes"):
        decoding(shapes(tmp_path), config, resources)


def test_what_decoders_lost_or_guessed_is_counted_in_the_manifest(tmp_path: Path) -> None:
    place = tmp_path / "images"
    write_images(place)
    images = make(tmp_path / "store", "data_pipelines.sources.image_folder", {"path": str(place)})
    latents = encode(tmp_path / "store", images)
    assert latents.manifest.content.metrics == {
        "notes.broken_icc": 1, "notes.first_frame": 4, "notes.range_guessed": 2,
    }  # fmt: skip
