"""Codes against brute force and diffusers; the preset's sizes."""

import numpy as np
import pytest
import torch
from diffusers import VQModel

from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.calibrate import calibrate
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network, load_network, save_network
from transfusion.autoencoder.parameters import num_parameters
from transfusion.autoencoder.presets import PRESETS
from transfusion.autoencoder.quantizer import by_channel, nearest_codes, perplexity, vectors_of
from transfusion.errors import ArtifactError


def images(count=4, size=16):
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("vq")
    torch.manual_seed(0)
    config = AutoencoderConfig(
        block_channels=(8, 8), latent_channels=4, norm_groups=4, codebook_size=32
    )
    network = build_network(config, sample_size_px=16)
    save_network(place, config=dict(network.config), weights=network.state_dict())
    calibrate(network, images()).write(place)
    return place


def test_nearest_codes_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr("transfusion.autoencoder.quantizer.MAX_DISTANCES", 100)  # many parts
    torch.manual_seed(1)
    latents, codes = torch.randn(3, 5, 4, 6), torch.randn(17, 5)
    found = nearest_codes(latents, codes)
    for b, i, j in np.ndindex(3, 4, 6):
        distances = (codes.double() - latents[b, :, i, j].double()).square().sum(1)
        assert found[b, i, j] == distances.argmin()
    assert torch.equal(vectors_of(found, codes)[2, :, 3, 5], codes[found[2, 3, 5]])


def test_products_in_bf16_do_not_change_the_codes():
    torch.manual_seed(2)
    latents, codes = torch.randn(8, 8, 8, 8), torch.randn(4096, 8) * 0.3
    expected = nearest_codes(latents, codes)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest_codes(latents, codes), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_diffusers_reads_what_is_written_and_gives_the_same(folder):
    ours, theirs = Autoencoder.load(folder), VQModel.from_pretrained(folder).eval()
    signal = torch.from_numpy(images().numpy().transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1
    with torch.no_grad():
        latents = theirs.encode(signal).latents
        _, _, (_, _, indices) = theirs.quantize(latents)
        decoded = theirs.decode(latents).sample.clamp(-1, 1).permute(0, 2, 3, 1)
    assert torch.equal(ours.encode_indices(images()).flatten(), indices.flatten())
    expected = ((decoded + 1) * 127.5).round().int()
    for made in (
        ours.reconstruct(images()),
        ours.decode_indices(ours.encode_indices(images())),
        ours.decode(ours.normalize(ours.encode(images()).mean)),
    ):
        assert (made.int() - expected).abs().max() <= 1
    assert ours.num_codes == 32
    assert ours.encode(images()).std.abs().max() == 0


def test_half_precision_latents_find_their_codes_again(folder):
    """Latents are kept in fp16: decoding moves them back to the codes."""
    ours = Autoencoder.load(folder)
    mean = ours.encode(images()).mean
    rounded = ours.decode(ours.normalize(mean.half().float()))
    assert torch.equal(rounded, ours.decode(ours.normalize(mean)))


def test_the_same_weights_come_back(folder, tmp_path):
    network = load_network(folder)
    assert isinstance(network, VQModel)
    save_network(tmp_path, config=dict(network.config), weights=network.state_dict())
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_network_without_a_codebook_says_so(tmp_path):
    config = AutoencoderConfig(block_channels=(8, 8), latent_channels=4, norm_groups=4)
    network = build_network(config, sample_size_px=16)
    save_network(tmp_path, config=dict(network.config), weights=network.state_dict())
    calibrate(network, images()).write(tmp_path)
    ready = Autoencoder.load(tmp_path)
    assert ready.num_codes is None
    with pytest.raises(ArtifactError, match="has no codebook"):
        ready.encode_indices(images())
    with pytest.raises(ArtifactError, match="codebook_size"):
        ready.decode_indices(torch.zeros((1, 8, 8), dtype=torch.long))


def test_perplexity_counts_codes_of_equal_use():
    assert perplexity(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3.0)
    assert perplexity(torch.tensor([5.0, 0.0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "parameters"), [("kl-f8-86M", 83_709_419), ("vq-f8-86M", 83_803_419)]
)
def test_the_paper_s_shape_has_its_size(name, parameters):
    config = PRESETS[name]
    with torch.device("meta"):
        network = build_network(config, sample_size_px=256)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == num_parameters(config) == parameters
    assert abs(count / 86e6 - 1) < 0.04
    assert (config.downsampling, config.latent_channels) == (8, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "middle", "latent_channels": 3},
        {"layers_per_block": 0, "block_channels": (16, 16, 16)},
        {"layers_per_block": 2, "block_channels": (8, 16, 8), "codebook_size": 16},
        {"block_channels": (8,)},
    ],
)
def test_parameters_by_formula_are_those_of_the_network(options):
    config = AutoencoderConfig(**options)
    with torch.device("meta"):
        network = build_network(config, sample_size_px=16)
    assert num_parameters(config) == sum(p.numel() for p in network.parameters())


def test_distances_by_channel_are_the_squares_of_those_at_once():
    draw = torch.Generator().manual_seed(3)
    part, table = torch.randn(50, 8, generator=draw), torch.randn(70, 8, generator=draw)
    by_hand = (part.double()[:, None] - table.double()[None]).square().sum(dim=2)
    torch.testing.assert_close(by_channel(part, table), by_hand.float())
