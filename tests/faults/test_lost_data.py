"""What is deleted behind a pool is made again before anything is published, and nothing else is."""

from pathlib import Path

import pytest

from tests.pipeline import Launch, make, make_autoencoder
from transfusion.artifacts.artifact import Artifact
from transfusion.errors import ArtifactError

SHAPES = {"num_images": 24, "seed": 3, "images_per_shard": 8}


def encode(root: Path, launch: Launch) -> Artifact:
    inputs = {
        "images": make(root, "data_pipelines.sources.shapes", SHAPES),
        "autoencoder": make_autoencoder(root),
    }
    config = {"image_size_px": 32, "micro_batch": 8}
    return make(root, "data_pipelines.encode_images", config, inputs, launch=launch)


def test_a_data_file_that_is_gone_is_made_again_by_the_same_command(tmp_path: Path) -> None:
    root = tmp_path / "store"
    whole = encode(root, Launch())
    whole.store.delete(whole.manifest.content.files[3].path)
    launch = Launch()
    again = encode(root, launch)
    assert launch.made == [1]
    assert again.manifest.digest == whole.manifest.digest
    for entry in again.manifest.content.files:
        assert again.local(entry.name).is_file()


def test_what_is_deleted_during_a_run_is_made_again_before_it_publishes(tmp_path: Path) -> None:
    root = tmp_path / "store"
    place = root / "data_pipelines.encode_images" / "pool" / "data"
    left = [1, 2]

    def delete_some() -> None:
        for file in sorted(place.rglob("*.parquet"))[: left.pop() if left else 0]:
            file.unlink()

    launch = Launch(delete_some)
    made = encode(root, launch)
    assert len(launch.made) == 3
    assert made.manifest.digest == encode(tmp_path / "calm", Launch()).manifest.digest
    for entry in made.manifest.content.files:
        assert made.local(entry.name).is_file()


def test_a_store_that_keeps_losing_data_publishes_nothing_and_is_named(tmp_path: Path) -> None:
    root = tmp_path / "store"
    place = root / "data_pipelines.encode_images" / "pool" / "data"

    def delete_all() -> None:
        for file in place.rglob("*.parquet"):
            file.unlink()

    with pytest.raises(ArtifactError, match="find out what deletes below"):
        encode(root, Launch(delete_all))
    assert not list(root.glob("data_pipelines.encode_images/*/manifest.json"))
