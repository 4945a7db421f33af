"""The autoencoder room against diffusers and numpy."""

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import Content, Manifest
from transfusion.artifacts.pixels import PIXELS_RAW, PixelRow, pixels_table
from transfusion.artifacts.tables import store_table
from transfusion.autoencoder.autoencoder import (
    Autoencoder,
    folder_digest,
    psnr_db,
    to_images,
    to_signal,
)
from transfusion.autoencoder.config import AutoencoderConfig, LoadAutoencoderConfig, list_files
from transfusion.autoencoder.network import build_network, load_network, save_network
from transfusion.autoencoder.run import run
from transfusion.autoencoder.statistics import LatentStatistics, measure
from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.resources import Resources
from transfusion.stage import Progress, StageContext
from transfusion.storage.store import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    network = build_network(
        AutoencoderConfig(block_channels=(8, 8), latent_channels=4, norm_groups=4),
        sample_size_px=16,
    )
    save_network(place, config=dict(network.config), weights=network.state_dict())
    statistics = LatentStatistics(
        shift=(0.0, 1.0, -1.0, 0.5), scale=(1.0, 2.0, 0.5, 1.0), num_images=2
    )
    statistics.write(place)
    return place


def images(count=3, size=16):
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def test_encodes_and_decodes_as_diffusers_does(folder):
    ours, theirs = Autoencoder.load(folder), AutoencoderKL.from_pretrained(folder).eval()
    signal = torch.from_numpy(images().numpy().transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1
    with torch.no_grad():
        expected = theirs.encode(signal).latent_dist
        found = ours.encode(images())
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.std, expected.std, rtol=1e-4, atol=1e-6)
        normalized = (expected.mean - torch.tensor([0.0, 1.0, -1.0, 0.5]).view(1, 4, 1, 1)) / (
            torch.tensor([1.0, 2.0, 0.5, 1.0]).view(1, 4, 1, 1)
        )
        torch.testing.assert_close(ours.normalize(found.mean), normalized)
        decoded = theirs.decode(expected.mean).sample.clamp(-1, 1).permute(0, 2, 3, 1)
    off_by = ours.decode(normalized).int() - ((decoded + 1) * 127.5).round().int()
    assert off_by.abs().max() <= 1
    with torch.no_grad():
        through = theirs.decode(expected.mean).sample
    off_by = ours.reconstruct(images()).int() - to_images(through).int()
    assert off_by.abs().max() <= 1


def test_bytes_survive_the_way_in_and_out():
    every_level = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_images(to_signal(every_level)), every_level)


def test_normalised_latents_have_mean_0_and_deviation_1_per_channel():
    draw = np.random.default_rng(1)
    latents = draw.normal([[[[3.0]], [[-2.0]]]], [[[[0.5]], [[4.0]]]], (64, 2, 4, 4))
    tensor = torch.from_numpy(latents.astype(np.float32))
    normalized = measure(tensor).normalize(tensor).numpy()
    np.testing.assert_allclose(normalized.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 2, 3)), 1, atol=1e-5)


def test_the_same_weights_give_the_same_bytes(folder, tmp_path):
    network = load_network(folder)
    save_network(tmp_path, config=dict(network.config), weights=network.state_dict())
    LatentStatistics.read(folder, latent_channels=4).write(tmp_path)
    assert folder_digest(tmp_path) == folder_digest(folder)


@pytest.mark.parametrize(
    ("breakage", "told"),
    [
        (lambda place: (place / "config.json").unlink(), "config.json"),
        (lambda place: (place / "config.json").write_text("{"), "JSON"),
        (
            lambda place: (place / "config.json").write_text('{"_class_name": "UNet2DModel"}'),
            "AutoencoderKL",
        ),
        (lambda place: (place / "latent_statistics.json").unlink(), "latent_statistics.json"),
        (
            lambda place: (place / "latent_statistics.json").write_text(
                json.dumps({"shift": [0], "scale": [1], "num_images": 1})
            ),
            "1 channels",
        ),
        (
            lambda place: (place / "diffusion_pytorch_model.safetensors").write_bytes(b"no"),
            "does not fit",
        ),
    ],
)
def test_a_broken_folder_is_told_not_loaded(folder, tmp_path, breakage, told):
    for source in folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    breakage(tmp_path)
    with pytest.raises(ArtifactError, match=told):
        Autoencoder.load(tmp_path)


def test_psnr_is_the_textbook_one():
    reference = torch.zeros((1, 4, 4, 3), dtype=torch.uint8)
    assert psnr_db(reference + 10, reference).item() == pytest.approx(
        20 * np.log10(255 / 10), abs=1e-4
    )
    assert psnr_db(reference, reference).item() == 99.0


def test_channels_that_the_groups_do_not_divide_are_refused_in_words():
    _, faults = validate(AutoencoderConfig, {"block_channels": [12], "norm_groups": 8}, where="x")
    assert "multiples of norm_groups 8" in faults[0]


def test_an_autoencoder_made_elsewhere_is_taken_in_with_its_statistics(folder, tmp_path):
    theirs = tmp_path / "theirs"
    AutoencoderKL.from_pretrained(folder).save_pretrained(theirs)
    store = open_store(str(tmp_path / "store"))
    rows = [
        PixelRow(
            key=f"{index:03}",
            image_index=0,
            sha256=b"0" * 32,
            caption="",
            metadata={},
            pixels=pixels,
        )
        for index, pixels in enumerate(images(12).numpy())
    ]
    file = store_table(store, "pixels", "s/rows", pixels_table(rows), raw_columns=PIXELS_RAW)
    content = Content(kind="pixels", files=[file], metadata={"image_size_px": 16})
    manifest = Manifest(
        stage="images", uses="pixels", version=1, fingerprint="0" * 64, payload={}, config={},
        inputs={}, content=content, digest=content.digest(),
    )  # fmt: skip
    context = StageContext(
        name="autoencoder", uses="transfusion.autoencoder", version=1, fingerprint="1" * 64,
        store=store, resources=Resources(), scratch=tmp_path, log=logging.getLogger("test"),
        progress=Progress,
    )  # fmt: skip
    config = LoadAutoencoderConfig(path=str(theirs), calibration_images=8)
    made = run(config, {"images": Artifact(store, manifest)}, context)
    assert made.metadata["latent_channels"] == 4
    assert made.metadata["downsampling"] == 2
    ready = Autoencoder.load((tmp_path / "store" / made.files[0].path).parent)
    latents = ready.encode(images(12)[:8]).mean
    np.testing.assert_allclose(
        ready.statistics.shift,
        latents.mean((0, 2, 3)).numpy(),
        atol=0.3 * max(ready.statistics.scale),
    )
    before = list_files(config)
    (theirs / "config.json").write_text((theirs / "config.json").read_text() + " ")
    assert list_files(config) != before
