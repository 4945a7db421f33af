"""The autoencoder is trained by the same loop."""

import json

import pytest
import torch
import torch.distributed as dist

from tests.train.autoencoders import CODES, crops, settings, train
from tests.train.outcomes import rows
from tests.train.worlds import in_world
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network
from transfusion.autoencoder.quantizer import codebook
from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.resources import TrainResources
from transfusion.train.autoencoder.codes import restart_dead_codes
from transfusion.train.autoencoder.config import TrainAutoencoderConfig
from transfusion.train.autoencoder.forward import QuantizedReconstruction
from transfusion.train.autoencoder.trainee import AutoencoderTrainee

pytestmark = pytest.mark.usefixtures("world")


def in_groups(folder):
    """For `in_world`: four workers share one copy of the weights, or two share each."""
    for name, size in (("one", None), ("groups", 2)):
        resources = TrainResources(shard_group_size=size)
        outcome = train(folder / name, resources=resources, steps=4, lanes=8, batch_size=8)
        if dist.get_rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(outcome))


def test_workers_in_groups_take_the_steps_of_one_group(tmp_path):
    in_world(4, in_groups, tmp_path)
    one, groups = (
        rows(tmp_path / name, json.loads((tmp_path / f"{name}.json").read_text()))
        for name in ("one", "groups")
    )
    assert len(one) == 4
    for row, expected in zip(groups, one, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_learns_resumes_and_comes_out_in_the_diffusers_layout(tmp_path):
    outcome = train(tmp_path / "whole")
    files = {file["name"]: tmp_path / "whole" / file["path"] for file in outcome["files"]}
    assert set(files) == {
        "config.json", "diffusion_pytorch_model.safetensors", "latent_statistics.json", "metrics.jsonl",
    }  # fmt: skip
    lines = [json.loads(line) for line in files["metrics.jsonl"].read_text().splitlines()]
    quality = [row["values"]["psnr_db"] for row in lines if row["kind"] == "validation"]
    assert quality[-1] > quality[0] + 1

    ready = Autoencoder.load(files["config.json"].parent)
    heldout = torch.from_numpy(crops().images[16:])
    error = (ready.reconstruct(heldout).double() - heldout.double()).square().mean((1, 2, 3))
    by_hand = (10 * torch.log10(255**2 / error)).mean().item()
    assert outcome["metrics"]["psnr_db"] == pytest.approx(by_hand, abs=1e-3)

    found = ready.encode(torch.from_numpy(crops().images[:16]))
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(1))
    latents = ready.normalize(found.sample(noise))
    assert latents.mean((0, 2, 3)).abs().max() < 0.2
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2

    with pytest.raises(InterruptedError):
        train(tmp_path / "torn", stop_after=13)
    again = train(tmp_path / "torn")
    assert [file["digest"] for file in again["files"]] == [
        file["digest"] for file in outcome["files"]
    ]


def test_too_few_images_and_odd_sides_are_told(tmp_path):
    with pytest.raises(ArtifactError, match="24 images, of which heldout_images 24"):
        train(tmp_path, heldout_images=24)
    network = AutoencoderConfig(block_channels=(4,) * 6, latent_channels=4, norm_groups=4)
    with pytest.raises(ArtifactError, match="multiples of 32"):
        train(tmp_path, network=network)


def test_an_uneven_batch_is_refused_with_the_nearest_one():
    values = {"steps": 1, "seed": 0, "batch_size": 33, "lanes": 2}
    _, faults = validate(TrainAutoencoderConfig, values, where="job")
    assert faults == ["job: batch_size must be a multiple of lanes 2, got 33; nearest valid: 32"]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("quantize_from_step", [0, 15])
def test_a_codebook_is_learned_used_and_resumed_to_the_bit(tmp_path, quantize_from_step):
    options = {
        "network": CODES,
        "restart_codes_every_steps": 5,
        "quantize_from_step": quantize_from_step,
        "steps": 60,
    }
    outcome = train(tmp_path / "whole", **options)
    files = {file["name"]: tmp_path / "whole" / file["path"] for file in outcome["files"]}
    lines = [json.loads(line) for line in files["metrics.jsonl"].read_text().splitlines()]
    validation = [row["values"] for row in lines if row["kind"] == "validation"]
    assert validation[-1]["psnr_db"] > validation[0]["psnr_db"] + 1
    assert 1 / 64 < validation[-1]["codes_used"] <= 1
    assert 1 < validation[-1]["code_perplexity"] <= 64
    assert {"code_distance", "codes_used", "code_perplexity"} <= set(lines[0]["values"])

    ready = Autoencoder.load(files["config.json"].parent)
    heldout = torch.from_numpy(crops().images[16:])
    assert outcome["metadata"]["num_codes"] == 64
    assert len(ready.encode_indices(heldout).unique()) > 1

    # 13 lies between a restart and the next, and after a checkpoint: use is counted on.
    with pytest.raises(InterruptedError):
        train(tmp_path / "torn", stop_after=13, **options)
    again = train(tmp_path / "torn", **options)
    assert [file["digest"] for file in again["files"]] == [
        file["digest"] for file in outcome["files"]
    ]


@pytest.mark.parametrize("quantizes", [True, False])
def test_gradients_of_a_codebook_are_those_of_its_formula(quantizes):
    """Straight through to the encoder, the codes' own from their distance, against autograd by hand.

    Before codes are heard: the plain autoencoder's, and codes that follow it.
    """
    torch.manual_seed(0)
    network = build_network(CODES, sample_size_px=16)
    model, config = QuantizedReconstruction(network), settings(network=CODES, codebook_weight=0.7)
    model.quantizes = quantizes
    signal = torch.rand(2, 3, 16, 16) * 2 - 1
    made, *latent = model(signal, torch.zeros(2, 4, 8, 8))
    ((made - signal).abs().sum() + model.term(config, signal, *latent).loss).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}

    network.zero_grad()
    latents = network.encode(signal).latents
    with torch.no_grad():
        distances = torch.cdist(
            latents.permute(0, 2, 3, 1).reshape(-1, 4), network.quantize.embedding.weight
        )
        nearest = distances.argmin(1)
    table = network.quantize.embedding.weight
    vectors = table[nearest].view(2, 8, 8, 4).permute(0, 3, 1, 2)
    straight = latents + (vectors - latents).detach() if quantizes else latents
    error = (network.decode(straight, force_not_quantize=True).sample - signal).abs().mean()
    codes = (vectors - latents.detach()).square().mean()
    encoder = (latents - vectors.detach()).square().mean()
    commitment = 0.25 if quantizes else 0.0
    (error + 0.7 * (codes + commitment * encoder)).backward()
    for name, parameter in network.named_parameters():
        expected = parameter.grad * signal.numel()
        torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=2e-3)
    assert found["quantize.embedding.weight"].abs().sum() > 0


def test_dead_codes_move_to_latents_and_live_ones_stay():
    torch.manual_seed(0)
    model = QuantizedReconstruction(build_network(CODES, sample_size_px=16))
    before = codebook(model.network).detach().clone()
    model.usage[:60] = 1
    latents = torch.randn(2, 4, 8, 8)
    assert restart_dead_codes(model, latents, seed=0, step=5) == 4
    after = codebook(model.network).detach()
    assert torch.equal(after[:60], before[:60])
    places = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    for moved in after[60:]:
        assert (places == moved).all(dim=1).any()
    assert model.usage.sum() == 0


@pytest.mark.usefixtures("unchecked_shapes")
def test_when_codes_begin_to_be_heard_all_of_them_lie_where_images_do():
    trainee = AutoencoderTrainee(
        settings(network=CODES, quantize_from_step=2), crops(), device=torch.device("cpu")
    )
    heard, tables = [], []
    for step in range(4):
        before = codebook(trainee.model.network).full_tensor().detach().clone()
        trainee.forward_backward(step)
        after = codebook(trainee.model.network).full_tensor().detach().clone()
        heard.append(trainee.model.quantizes)
        tables.append((before, after))
    assert heard == [False, False, True, True]
    moved = [bool((before != after).any(dim=1).all()) for before, after in tables]
    assert moved == [False, False, True, False], "no optimizer steps here: only the move moves"


@pytest.mark.parametrize("option", ["restart_codes_every_steps", "quantize_from_step"])
def test_an_option_of_codes_without_a_codebook_is_refused(option):
    _, faults = validate(TrainAutoencoderConfig, {"steps": 9, "seed": 0, option: 3}, where="job")
    assert f"{option} is of a codebook" in faults[0]
    assert "set network.codebook_size" in faults[0]


def test_codes_that_would_never_be_heard_are_refused():
    values = {"steps": 9, "seed": 0, "network": {"codebook_size": 64}, "quantize_from_step": 9}
    _, faults = validate(TrainAutoencoderConfig, values, where="job")
    assert "quantize_from_step must be below steps 9, got 9" in faults[0]
