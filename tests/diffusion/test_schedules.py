"""Schedules against diffusers, solvers against an exact Gaussian denoiser."""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from transfusion.diffusion.config import ScheduleName
from transfusion.diffusion.guidance import guide
from transfusion.diffusion.schedules import SCHEDULES, add_noise, alphas_cumprod
from transfusion.diffusion.solvers import SOLVERS, SolverName, check_steps, make_solver

IN_DIFFUSERS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def test_every_choice_has_its_row():
    assert set(get_args(ScheduleName)) == set(SCHEDULES) == set(IN_DIFFUSERS)
    assert set(get_args(SolverName)) == set(SOLVERS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_equals_that_of_diffusers(name):
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=IN_DIFFUSERS[name])
    torch.testing.assert_close(alphas_cumprod(name), reference.alphas_cumprod, rtol=1e-6, atol=1e-9)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([0, 1, 499, 998, 999])
    torch.testing.assert_close(
        add_noise(latents, noise, timesteps, alphas_cumprod(name)),
        reference.add_noise(latents, noise, timesteps),
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_from_signal_to_noise(name):
    signal = alphas_cumprod(name)
    assert signal[0] > 0.999
    assert signal[-1] < 1e-4
    assert bool((signal.diff() < 0).all())


def test_all_timesteps_stay_apart_when_latents_are_in_half_precision():
    ones = torch.ones(1000, 1, 1, 1, dtype=torch.bfloat16)
    noisy = add_noise(ones, 0 * ones, torch.arange(1000), alphas_cumprod("cosine"))
    assert noisy.dtype == torch.float32
    assert len(noisy.flatten().unique()) == 1000


def steps_offered():
    for solver, offer in SOLVERS.items():
        for num_steps in sorted({offer.min_steps, 50, 100, 250, offer.max_steps}):
            if offer.min_steps <= num_steps <= offer.max_steps:
                yield solver, num_steps


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("solver", "num_steps"), steps_offered())
def test_a_solver_keeps_unit_variance_though_the_denoiser_errs_by_two_percent(
    schedule, solver, num_steps
):
    signal = alphas_cumprod(schedule)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, 8, 8, generator=generator)
    scheduler = make_solver(solver, num_steps=num_steps, schedule=schedule)
    random = {"generator": generator} if solver in ("ddpm", "ddim") else {}
    for t in scheduler.timesteps:
        # For data of unit variance E[noise | x_t] = sqrt(1 - a_t) x_t.
        epsilon = (1 - signal[t]).sqrt() * x + 0.02 * torch.randn(x.shape, generator=generator)
        x = scheduler.step(epsilon, t, x, **random).prev_sample
    assert float(x.std()) == pytest.approx(1.0, abs=0.05)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_too_few_or_too_many_steps_are_refused_with_the_range(solver):
    offer = SOLVERS[solver]
    with pytest.raises(ValueError, match=f"{offer.min_steps} to {offer.max_steps}"):
        make_solver(solver, num_steps=offer.min_steps - 1)
    with pytest.raises(ValueError, match=f"{offer.min_steps} to {offer.max_steps}"):
        check_steps(solver, num_steps=offer.max_steps + 1)


def test_guidance_moves_away_from_the_unconditional():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert guide(conditional, unconditional, 0.0).item() == 1.0
    assert guide(conditional, unconditional, 1.0).item() == 2.0
    assert guide(conditional, unconditional, 3.0).item() == 4.0
    np.testing.assert_allclose(guide(conditional, conditional, 7.0).numpy(), [2.0])
