"""Perceptual loss and discriminator: their formulas, whom they move, and that a resumed run is the same run."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.train.autoencoders import CODES, settings, train
from transfusion.autoencoder.network import build_network
from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.train.autoencoder.config import (
    DiscriminatorConfig,
    PerceptualConfig,
    TrainAutoencoderConfig,
    raw_input,
)
from transfusion.train.autoencoder.critic import Critic, contest, no_contest
from transfusion.train.autoencoder.forward import Reconstruction
from transfusion.train.autoencoder.judged import Judged
from transfusion.train.autoencoder.perception import VGG_PARTS, Perception

pytestmark = pytest.mark.usefixtures("world")

RULE = DiscriminatorConfig(from_step=0, channels=8, layers=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A VGG-16 two to four channels wide."""
    draw = torch.Generator().manual_seed(0)
    tensors, before = {}, 3
    for part, places in enumerate(VGG_PARTS):
        for place in places:
            width = 2 + part % 3
            tensors[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=draw)
            tensors[f"features.{place}.bias"] = torch.randn(width, generator=draw)
            before = width
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


def batch(count=2, size=16):
    draw = torch.Generator().manual_seed(1)
    return (torch.rand(count, 3, size, size, generator=draw) * 2 - 1 for _ in range(2))


def digests(outcome):
    return {file["name"]: file["digest"] for file in outcome["files"]}


def test_distance_is_that_of_normalised_features(weights):
    made, signal = batch()
    perception = Perception(weights, device=torch.device("cpu"))
    found = perception.distance(made, signal)

    tensors = load_file(weights)

    def features(x):
        x = (x + 1) / 2
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(1, 3, 1, 1)
        for part, places in enumerate(VGG_PARTS):
            x = F.max_pool2d(x, 2) if part else x
            for place in places:
                x = F.conv2d(
                    x,
                    tensors[f"features.{place}.weight"],
                    tensors[f"features.{place}.bias"],
                    padding=1,
                ).relu()
            yield x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)

    expected = sum(
        (a - b).square().sum(1).mean((1, 2))
        for a, b in zip(features(made), features(signal), strict=True)
    )
    torch.testing.assert_close(found, expected)
    assert perception.distance(signal, signal).abs().max() == 0
    made.requires_grad_()
    perception.distance(made, signal).sum().backward()
    assert made.grad.abs().sum() > 0


def test_learned_channel_weights_are_taken_where_the_file_has_them(weights, tmp_path):

    tensors = load_file(weights)
    none = {f"lin{part}.weight": torch.zeros(2 + part % 3) for part in range(5)}
    save_file(tensors | none, tmp_path / "lpips.safetensors")
    made, signal = batch()
    zero = Perception(tmp_path / "lpips.safetensors", device=torch.device("cpu"))
    assert zero.distance(made, signal).abs().max() == 0


def test_missing_weights_are_told_and_content_is_identity(weights, tmp_path):
    nowhere = settings(perceptual=PerceptualConfig(path=str(tmp_path / "vgg.safetensors")))
    with pytest.raises(ArtifactError, match="leave perceptual out"):
        raw_input(nowhere)
    with pytest.raises(ArtifactError, match="leave perceptual out"):
        Perception(tmp_path / "vgg.safetensors", device=torch.device("cpu"))
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.safetensors")
    with pytest.raises(ArtifactError, match="lacks 25 tensors of VGG-16"):
        Perception(tmp_path / "vgg.safetensors", device=torch.device("cpu"))
    here = settings(perceptual=PerceptualConfig(path=str(weights)))
    assert raw_input(here) != raw_input(nowhere)
    assert "path" not in here.identity()["perceptual"]
    assert raw_input(settings()) is None
    assert "perceptual" not in settings().identity()


def test_each_side_of_the_contest_moves_itself_alone():
    torch.manual_seed(0)
    critic = Critic(RULE)
    made, signal = batch()
    made.requires_grad_()
    between = contest(critic, made, signal)
    with torch.no_grad():
        real, fake = critic(signal), critic(made)
    assert between.generator.item() == pytest.approx(-fake.mean().item(), rel=1e-5)
    expected = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    assert between.critic.item() == pytest.approx(expected.item(), rel=1e-5)
    between.generator.backward(retain_graph=True)
    assert all(weight.grad is None for weight in critic.parameters())
    assert made.grad.abs().sum() > 0
    made.grad = None
    between.critic.backward()
    assert made.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in critic.parameters() if weight.ndim == 4)
    critic.zero_grad()
    no_contest(critic).backward()
    assert all(weight.grad.abs().sum() == 0 for weight in critic.parameters())


def test_balance_is_the_ratio_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    network = build_network(settings().network, sample_size_px=16)
    model = Judged(Reconstruction(network), settings(discriminator=RULE), None)
    signal, _ = batch()
    noise = torch.randn(2, 4, 8, 8)
    *_, judged = model(signal, noise, True)

    made, *_ = model.inner(signal, noise)
    last = network.decoder.conv_out.weight
    absolute = (made - signal).abs().mean()
    against = -model.critic(made).mean()
    ours = torch.autograd.grad(absolute, last, retain_graph=True)[0].norm()
    theirs = torch.autograd.grad(against, last)[0].norm()
    assert judged.strength.item() == pytest.approx((ours / (theirs + 1e-4)).item(), rel=1e-3)
    expected = (judged.strength * against).item()
    assert judged.generator.item() == pytest.approx(expected, rel=1e-4)


def test_until_its_step_a_discriminator_changes_nothing(tmp_path):
    late = DiscriminatorConfig(from_step=1000, channels=8, layers=1)
    plain = digests(train(tmp_path / "plain", steps=6))
    waiting = digests(train(tmp_path / "waiting", steps=6, discriminator=late))
    name = "diffusion_pytorch_model.safetensors"
    assert waiting[name] == plain[name]
    now = digests(train(tmp_path / "now", steps=6, discriminator=RULE))
    assert now[name] != plain[name]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("network", [None, CODES])
def test_a_contested_run_resumes_to_the_bit(tmp_path, weights, network):
    options = {
        "steps": 20,
        "checkpoint_every_steps": 5,
        "perceptual": PerceptualConfig(path=str(weights), weight=0.1),
        "discriminator": DiscriminatorConfig(from_step=7, channels=8, layers=1),
    }
    options |= {"network": network} if network else {}
    whole = train(tmp_path / "whole", **options)
    assert {"generator", "critic", "strength", "perceptual"} <= {
        name.removeprefix("train.") for name in whole["metrics"]
    }
    for stop in (6, 13):  # before and after it begins
        with pytest.raises(InterruptedError):
            train(tmp_path / f"torn-{stop}", stop_after=stop, **options)
        assert digests(train(tmp_path / f"torn-{stop}", **options)) == digests(whole)


def test_a_path_that_is_missing_is_told_when_a_job_is_planned():
    values = {"steps": 1, "seed": 0, "perceptual": {"weight": 1.0}}
    _, faults = validate(TrainAutoencoderConfig, values, where="job")
    assert faults == ["job.perceptual.path: this key is required and is missing"]
