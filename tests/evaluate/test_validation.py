"""Validation losses of a model whose error is known."""

from unittest.mock import Mock

import pytest
import torch

from tests.pipeline import make_mixture
from tests.tiny import package_config
from transfusion.artifacts.artifact import Artifact
from transfusion.diffusion.config import NoiseConfig
from transfusion.diffusion.noising import Noising
from transfusion.evaluate.validation import validation_losses
from transfusion.ingest.reader import MixtureReader
from transfusion.model.transformer import ModelOutput
from transfusion.package.load import Package

NOISES = [
    NoiseConfig(),
    NoiseConfig(target="v"),
    NoiseConfig(schedule="straight", target="flow", timestep_shift=3.0),
]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_mixture(tmp_path_factory.mktemp("validation") / "store")


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.target)
def test_an_error_in_the_target_is_told_in_the_target_and_in_the_noise(
    mixture: Artifact, noise: NoiseConfig
) -> None:
    noising = Noising.of(noise)
    seen = []

    def model(batch, noisy):
        assert torch.equal(
            noisy, noising.apply(batch.latents, batch.noise, batch.timesteps).latents
        )
        target = noising.apply(batch.latents, batch.noise, batch.timesteps).target
        seen.append(batch.timesteps[batch.image_weight.bool()])
        logits = torch.zeros(len(batch.text_targets), 1000)
        return ModelOutput(logits=logits, epsilon=target + 0.1)

    package = Mock(spec=Package)
    package.config = package_config(**noise.resolved())
    package.device = torch.device("cpu")
    package.model = model
    losses = validation_losses(package, mixture)
    assert losses["validation.diffusion_loss"] == pytest.approx(0.01, rel=1e-4)
    timesteps = torch.cat(seen)
    # An error in v or in the velocity is one in the noise, times the signal.
    expected = 0.01 * noising.path.signal[timesteps].square().mean()
    if noise.target == "epsilon":
        assert "validation.noise_loss" not in losses
    else:
        assert losses["validation.noise_loss"] == pytest.approx(float(expected), rel=1e-3)
    assert timesteps.tolist() == default_timesteps(mixture)


def default_timesteps(mixture: Artifact) -> list[int]:
    """Those of validation by the default objective: a model of any other sees the same."""
    reader = MixtureReader(mixture, seed=0)
    batches = [reader.validation(index) for index in range(reader.num_validation)]
    return torch.cat([b.timesteps[b.image_weight.bool()] for b in batches]).tolist()
