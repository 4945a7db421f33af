"""Targets and weights against their papers' formulas, and there and back."""

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.diffusion.toys import NOISES, called
from transfusion.diffusion.config import LossWeighting, NoiseConfig, ObjectiveConfig, TargetName
from transfusion.diffusion.noising import Noising
from transfusion.diffusion.schedules import add_noise, alphas_cumprod, noise_path
from transfusion.diffusion.targets import TARGETS, clean_and_noise, target_of
from transfusion.diffusion.weightings import WEIGHTINGS, loss_weights


def test_every_choice_has_its_row():
    assert set(get_args(TargetName)) == set(TARGETS)
    assert set(get_args(LossWeighting)) == set(WEIGHTINGS)


def pairs(count, seed=0):
    return torch.randn(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", NOISES, ids=called)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), timestep=st.integers(0, 999), scale=st.sampled_from([0.1, 1, 4]))
def test_clean_latent_and_noise_come_back_from_the_target(noise, seed, timestep, scale):
    path = noise_path(noise.schedule)
    if noise.target == "epsilon":
        # Where next to no signal is left, fp32 does not hold the clean latent.
        timestep = min(timestep, 950)
    latents, drawn = pairs(2, seed)
    latents, timesteps = scale * latents, torch.tensor([timestep, 0])
    noisy = add_noise(latents, drawn, timesteps, path)
    target = target_of(noise.target, latents, drawn, timesteps, path)
    clean, back = clean_and_noise(noise.target, target, noisy, timesteps, path)
    torch.testing.assert_close(clean, latents, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(back, drawn, atol=2e-4, rtol=1e-4)


def test_epsilon_is_the_noise_to_the_bit():
    latents, drawn = pairs(1000)
    path = noise_path("cosine")
    assert torch.equal(target_of("epsilon", latents, drawn, torch.arange(1000), path), drawn)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_v_equals_that_of_diffusers(schedule):
    reference = DDPMScheduler(trained_betas=(1 - _ratio(alphas_cumprod(schedule))).tolist())
    latents, drawn = pairs(5)
    timesteps = torch.tensor([0, 1, 499, 990, 999])
    torch.testing.assert_close(
        target_of("v", latents, drawn, timesteps, noise_path(schedule)),
        reference.get_velocity(latents, drawn, timesteps),
        atol=1e-4,
        rtol=1e-4,
    )


def _ratio(share):
    return share / torch.cat([torch.ones(1), share[:-1]])


def test_the_velocity_of_flow_leads_from_the_latent_to_the_noise():
    latents, drawn = pairs(2)
    path = noise_path("straight")
    velocity = target_of("flow", latents, drawn, torch.tensor([0, 700]), path)
    torch.testing.assert_close(latents + velocity, drawn)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_min_snr_equals_the_papers_weights(schedule):
    path = noise_path(schedule)
    snr = (path.signal.double() / path.noise.double()).square()
    for target, below in (("epsilon", snr), ("v", snr + 1)):
        weights = loss_weights("min_snr", target, path, gamma=5.0)
        torch.testing.assert_close(
            weights.double(), snr.clamp(max=5.0) / below, atol=1e-5, rtol=1e-4
        )


def test_truncated_snr_of_v_equals_the_papers_weights():
    path = noise_path("cosine")
    snr = (path.signal.double() / path.noise.double()).square()
    weights = loss_weights("truncated_snr", "v", path, gamma=5.0)
    torch.testing.assert_close(
        weights.double(), snr.clamp(min=1.0) / (snr + 1), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("weighting", [name for name in get_args(LossWeighting) if name != "none"])
@pytest.mark.parametrize("noise", NOISES, ids=called)
def test_a_weighted_error_in_any_target_is_one_weighted_error_in_the_clean_latent(noise, weighting):
    """The same miss counts the same, whichever target it was made in; and no weight is without bound."""
    if (weighting, noise.target) == ("truncated_snr", "epsilon"):
        with pytest.raises(ValueError, match="must not be 'truncated_snr' for target 'epsilon'"):
            ObjectiveConfig(**noise.resolved(), loss_weighting=weighting)
        return
    noising = Noising.of(ObjectiveConfig(**noise.resolved(), loss_weighting=weighting))
    assert bool(torch.isfinite(noising.weights).all())
    assert 0 <= float(noising.weights.min()) <= float(noising.weights.max()) <= 5.001
    timesteps = torch.tensor([300, 600, 800])
    latents, drawn = pairs(3)
    seen = noising.apply(latents, drawn, timesteps)
    missed = seen.target + 0.1
    clean, _ = clean_and_noise(noise.target, missed, seen.latents, timesteps, noising.path)
    snr = (noising.path.signal / noising.path.noise)[timesteps].square()
    of_clean = snr.clamp(max=5.0) if weighting == "min_snr" else snr.clamp(min=1.0)
    torch.testing.assert_close(
        seen.weight * 0.01, of_clean * (clean - latents).square().mean((1, 2, 3)), rtol=1e-2, atol=0
    )


def test_without_weights_there_is_nothing_to_multiply_with():
    assert Noising.of(ObjectiveConfig()).weights is None
    assert Noising.of(NoiseConfig()).apply(*pairs(2), torch.tensor([0, 5])).weight is None
