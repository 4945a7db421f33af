"""Schedules against diffusers."""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from transfusion.diffusion.config import BetaScheduleName, ScheduleName
from transfusion.diffusion.guidance import guide
from transfusion.diffusion.schedules import (
    BETAS,
    SCHEDULES,
    add_noise,
    alphas_cumprod,
    noise_path,
)

IN_DIFFUSERS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def test_every_choice_has_its_row():
    assert set(get_args(ScheduleName)) == set(SCHEDULES)
    assert set(get_args(BetaScheduleName)) == set(BETAS) == set(IN_DIFFUSERS)


@pytest.mark.parametrize("name", BETAS)
def test_a_schedule_equals_that_of_diffusers(name):
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=IN_DIFFUSERS[name])
    torch.testing.assert_close(alphas_cumprod(name), reference.alphas_cumprod, rtol=1e-6, atol=1e-9)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([0, 1, 499, 998, 999])
    torch.testing.assert_close(
        add_noise(latents, noise, timesteps, noise_path(name)),
        reference.add_noise(latents, noise, timesteps),
    )


@pytest.mark.parametrize("name", BETAS)
def test_tables_of_factors_noise_to_the_bit_as_the_formula_does(name):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1000, 2, 2, 2, generator=generator)
    share = alphas_cumprod(name)[:, None, None, None]
    expected = share.sqrt() * latents + (1.0 - share).sqrt() * noise
    assert torch.equal(add_noise(latents, noise, torch.arange(1000), noise_path(name)), expected)


def test_the_straight_path_equals_that_of_diffusers_and_reaches_both_ends():
    # Ours runs from 0 to 1 over t = 0..999; theirs over t = 1..n, with n steps.
    reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=999)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([1, 2, 499, 998, 999])
    torch.testing.assert_close(
        add_noise(latents, noise, timesteps, noise_path("straight")),
        reference.scale_noise(latents, timesteps.float(), noise),
    )
    ends = add_noise(latents, noise, torch.tensor([0, 999, 0, 999, 0]), noise_path("straight"))
    assert torch.equal(ends[0], latents[0])
    assert torch.equal(ends[1], noise[1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_from_signal_to_noise(name):
    signal, noise = noise_path(name)
    assert signal[0] > 0.999
    assert signal[-1] < 1e-2
    assert bool((signal.diff() < 0).all())
    assert bool((noise.diff() >= 0).all())


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_timesteps_stay_apart_when_latents_are_in_half_precision(name):
    ones = torch.ones(1000, 1, 1, 1, dtype=torch.bfloat16)
    noisy = add_noise(ones, 0 * ones, torch.arange(1000), noise_path(name))
    assert noisy.dtype == torch.float32
    assert len(noisy.flatten().unique()) == 1000


def test_guidance_moves_away_from_the_unconditional():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert guide(conditional, unconditional, 0.0).item() == 1.0
    assert guide(conditional, unconditional, 1.0).item() == 2.0
    assert guide(conditional, unconditional, 3.0).item() == 4.0
    np.testing.assert_allclose(guide(conditional, conditional, 7.0).numpy(), [2.0])
