"""Latents made elsewhere come in as they are, or with a reason why not."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.shards import in_process
from tests.pipeline import make, make_autoencoder
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LatentRow, latent_rows
from transfusion.artifacts.shards import read_rejects, row_entries
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError

# Of the autoencoder in `make_autoencoder`: 8 channels, downsampling 4, shift 0.5, scale 2.
SHAPE = (8, 8, 8)
NUM = 80


def posteriors(num: int = NUM) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    mean = draws.normal(0.5, 1.9, (num, *SHAPE)).astype(np.float32)
    std = draws.uniform(0.1, 0.9, (num, *SHAPE)).astype(np.float32)
    return mean, std


def npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def folder(root: Path, files: list[bytes]) -> Artifact:
    """Files under any ending, named by metadata rows."""
    place = root.parent / "latents"
    place.mkdir()
    rows = []
    for i, data in enumerate(files):
        (place / f"{i:04}.npy").write_bytes(data)
        rows.append({"file_name": f"{i:04}.npy", "text": f"picture {i}"})
    (place / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return make(root, "data_pipelines.sources.image_folder", {"path": str(place)})


def adopt(root: Path, files: list[bytes], **config: Any) -> Artifact:
    inputs = {"latents": folder(root, files), "autoencoder": make_autoencoder(root)}
    return make(
        root,
        "data_pipelines.adopt_latents",
        {"image_size_px": 32, **config},
        inputs,
        launch=in_process,
    )


def rows_of(latents: Artifact) -> dict[str, LatentRow]:
    return {
        row.key: row
        for entry in row_entries(latents).values()
        for row in latent_rows(load_table(latents.store, entry), SHAPE[0])
    }


@pytest.mark.parametrize("encoding", ["npy", "raw_fp16", "raw_fp32"])
def test_mean_and_deviation_come_in_to_the_bit(tmp_path: Path, encoding: str) -> None:
    mean, std = posteriors()
    both = np.concatenate([mean, std], axis=1)
    if encoding == "npy":
        files = [npy(one) for one in both.astype(np.float16)]
    else:
        dtype = "<f2" if encoding == "raw_fp16" else "<f4"
        files = [one.astype(dtype).tobytes() for one in both]
    adopted = adopt(tmp_path / "store", files, encoding=encoding, holds="mean_std")
    rows = rows_of(adopted)
    assert len(rows) == NUM
    for i in range(NUM):
        np.testing.assert_array_equal(rows[f"{i:04}.npy"].mean, mean[i].astype(np.float16))
        np.testing.assert_array_equal(rows[f"{i:04}.npy"].std, std[i].astype(np.float16))
    assert adopted.metadata["latent_height"] == 8


def test_what_diffusers_calls_parameters_is_read_with_scaling_and_shift_undone(
    tmp_path: Path,
) -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from torch import from_numpy

    mean, std = posteriors()
    parameters = np.concatenate([mean, 2 * np.log(std)], axis=1)
    theirs = DiagonalGaussianDistribution(from_numpy(parameters))
    scaled = np.concatenate(
        [(theirs.mean.numpy() - 0.3) * 0.25, 2 * np.log(theirs.std.numpy() * 0.25)], axis=1
    )
    adopted = adopt(
        tmp_path / "store", [npy(one) for one in scaled], scaling_factor=0.25, shift_factor=0.3
    )
    for i, row in enumerate(rows_of(adopted).values()):
        np.testing.assert_allclose(row.mean, mean[i], atol=4e-3)
        np.testing.assert_allclose(row.std, std[i], rtol=2e-3)


def test_latents_of_another_autoencoder_are_refused_before_any_work(tmp_path: Path) -> None:
    mean, std = posteriors()
    both = np.concatenate([mean * 0.18215, std * 0.18215], axis=1)
    with pytest.raises(ArtifactError, match=r"channel 0 of 80 latents.*set scaling_factor"):
        adopt(tmp_path / "store", [npy(one) for one in both], holds="mean_std")
    assert not (tmp_path / "store/data_pipelines.adopt_latents").exists()


def test_another_shape_everywhere_is_told_before_any_work(tmp_path: Path) -> None:
    mean, _ = posteriors()
    with pytest.raises(ArtifactError, match=r"shape \(8, 8, 8\), expected \(16, 8, 8\)"):
        adopt(tmp_path / "store", [npy(one) for one in mean])


def test_each_bad_latent_is_rejected_with_its_reason(tmp_path: Path) -> None:
    mean, std = posteriors()
    both = np.concatenate([mean, std], axis=1)
    files = [npy(one) for one in both]
    files[3] = npy(both[3, :, :4])
    files[4] = npy(np.array([{"a": 1}], dtype=object))
    files[5] = files[5][:100]
    files[6] = npy(np.where(both[6] > 0, np.inf, both[6]))
    files[7] = npy(both[7].astype(np.int32))
    files[8] = npy(-np.abs(both[8]))
    adopted = adopt(tmp_path / "store", files, holds="mean_std")
    rejected = {row["key"]: row for row in read_rejects(adopted).to_pylist()}
    assert sorted(rejected) == [f"{i:04}.npy" for i in range(3, 9)]
    assert {row["reason"] for row in rejected.values()} == {"bad_latent"}
    told = [row["detail"] for _, row in sorted(rejected.items())]
    for words, detail in zip(
        ("shape", "NumPy", "NumPy", "finite", "floating-point", "log-variance"), told, strict=True
    ):
        assert words in detail
    assert len(rows_of(adopted)) == NUM - 6
    outcomes = adopted.manifest.content.outcomes
    assert outcomes is not None
    assert (outcomes.input, outcomes.written) == (NUM, NUM - 6)
