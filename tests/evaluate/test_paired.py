"""Paired losses: the same images, timesteps and noise for every model, in any company."""

import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import LATENT, package_config, tiny_package
from transfusion.diffusion.config import NoiseConfig
from transfusion.diffusion.noising import Noising
from transfusion.evaluate import paired
from transfusion.evaluate.held_out import CaptionedImage
from transfusion.evaluate.paired import NUM_TIMESTEPS, paired_losses
from transfusion.model.transformer import ModelOutput
from transfusion.package.load import Package, load_package


def images(count: int) -> list[CaptionedImage]:
    draw = torch.Generator().manual_seed(1)
    return [
        CaptionedImage(f"k{i}", tuple(range(1, 2 + i % 5)), torch.randn(LATENT, generator=draw))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return load_package(tiny_package(tmp_path_factory.mktemp("paired")))


@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_an_error_in_the_noise_is_told_by_quarters(target: str) -> None:
    noise = NoiseConfig(target=target)
    noising = Noising.of(noise)
    seen: dict[int, torch.Tensor] = {}

    def model(batch, noisy):
        timestep = int(batch.timesteps[0])
        if timestep and len(batch.noise) == 3:
            seen[timestep] = batch.noise
        given = noising.apply(batch.latents, batch.noise, batch.timesteps)
        # The noise is missed by t / 1000; what that is in v is a matter of the path.
        wrong = torch.full_like(batch.noise, timestep / 1000)
        if target == "v":
            wrong = wrong / noising.path.signal[timestep]
        logits = torch.zeros(len(batch.text_targets), 50)
        return ModelOutput(logits=logits, epsilon=given.target + wrong)

    fake = Mock(spec=Package)
    fake.config = package_config(**noise.resolved())
    fake.device = torch.device("cpu")
    fake.model = model
    fake.autoencoder = Mock(normalize=lambda latents: latents)
    losses = paired_losses(fake, images(3))
    steps = [(25 + 50 * k) / 1000 for k in range(NUM_TIMESTEPS)]
    assert losses["paired.noise_loss"] == pytest.approx(sum(s * s for s in steps) / 20, rel=1e-3)
    last = sum(s * s for s in steps[15:]) / 5
    assert losses["paired.noise_loss_t3"] == pytest.approx(last, rel=1e-3)
    # Logits that are all alike say nothing: every token costs the logarithm of their number.
    assert losses["paired.caption_nll"] == pytest.approx(math.log(50), rel=1e-5)
    assert sorted(seen) == [25 + 50 * k for k in range(NUM_TIMESTEPS)]
    assert len({float(noise.sum()) for noise in seen.values()}) == NUM_TIMESTEPS


def test_company_and_order_do_not_matter(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    together = paired_losses(package, images(7))
    monkeypatch.setattr(paired, "_BATCH_SIZE", 2)
    apart = paired_losses(package, images(7)[::-1])
    assert together.keys() == apart.keys()
    for name, value in together.items():
        assert value == pytest.approx(apart[name], rel=1e-5), name


def test_a_caption_is_scored_after_its_clean_image_and_without_the_mark_of_the_image(
    package: Package,
) -> None:
    [image] = images(1)
    batch = paired._batch(package, [image], timestep=0, caption_first=False)
    special = package.config.special
    length = 1 + 1 + 4 + 1 + len(image.caption_ids) + 1
    ids = batch.token_ids[0, :length].tolist()
    pad = [special.pad] * 4
    assert ids == [
        special.bos, special.boi, *pad, special.eoi, *image.caption_ids, special.eos
    ]  # fmt: skip
    logits = package.model(batch, batch.latents).logits
    rows = {int(row): logits[i] for i, row in enumerate(batch.text_rows) if batch.text_weight[i]}
    nll = [
        F.cross_entropy(rows[at], torch.tensor(ids[at + 1])).item() for at in range(6, length - 1)
    ]
    found = paired_losses(package, [image])["paired.caption_nll"]
    assert found == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def test_nothing_is_measured_of_no_images(package: Package, tmp_path: Path) -> None:
    assert paired_losses(package, []) == {}
