"""Solvers against an exact Gaussian denoiser, for every target and schedule that they are offered for."""

import itertools
from typing import get_args

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.diffusion.toys import NOISES, SHIFTED, called, exact
from transfusion.diffusion.config import (
    SOLVER_STEPS,
    STRAIGHT_SOLVERS,
    NoiseConfig,
    SolverName,
)
from transfusion.diffusion.schedules import noise_path
from transfusion.diffusion.solvers import SOLVERS, check_steps, make_solver
from transfusion.diffusion.targets import TARGETS


def offered(noises):
    return [
        pytest.param(noise, solver, id=f"{called(noise)}-{solver}")
        for noise, (solver, offer) in itertools.product(noises, SOLVERS.items())
        if noise.schedule != "straight" or offer.build_straight is not None
    ]


def steps_offered(noises):
    return [
        pytest.param(*pair.values, num_steps, id=f"{pair.id}-{num_steps}")
        for pair in offered(noises)
        for fewest, most in [SOLVER_STEPS[pair.values[1]]]
        for num_steps in sorted({fewest, 50, 100, 250, most})
        if fewest <= num_steps <= most
    ]


def test_targets_and_schedules_that_belong_together_are_these():
    assert {(noise.schedule, noise.target) for noise in NOISES} == {
        ("cosine", "epsilon"), ("cosine", "v"),
        ("linear", "epsilon"), ("linear", "v"),
        ("straight", "flow"),
    }  # fmt: skip
    assert set(get_args(SolverName)) == set(SOLVERS) == set(SOLVER_STEPS)
    straight = {name for name, solver in SOLVERS.items() if solver.build_straight is not None}
    assert straight == set(STRAIGHT_SOLVERS)


def drawn(noise, solver, num_steps, *, error):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, 8, 8, generator=generator)
    start = x
    scheduler = make_solver(solver, num_steps=num_steps, noise=noise)
    random = {"generator": generator} if solver == "ddpm" else {}
    factor = exact(noise)
    for t in scheduler.timesteps:
        prediction = factor[round(float(t))] * x + error * torch.randn(x.shape, generator=generator)
        x = scheduler.step(prediction, t, x, **random).prev_sample
    return start, x


@pytest.mark.parametrize(("noise", "solver", "num_steps"), steps_offered([*NOISES, *SHIFTED]))
def test_a_solver_keeps_unit_variance_though_the_denoiser_errs_by_two_percent(
    noise, solver, num_steps
):
    _, x = drawn(noise, solver, num_steps, error=0.02)
    assert float(x.std()) == pytest.approx(1.0, abs=0.05)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("noise", NOISES, ids=called)
@pytest.mark.parametrize("solver", ["ddim", "dpm++", "unipc"])
def test_a_solver_without_noise_of_its_own_returns_the_normal_that_it_was_given(noise, solver):
    """Between unit normals the exact flow moves nothing, whatever is predicted."""
    start, x = drawn(noise, solver, 200, error=0.0)
    torch.testing.assert_close(x, start, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("noise", "solver"), offered([*NOISES, *SHIFTED]))
def test_a_solver_recovers_a_normal_that_is_not_the_noises(noise, solver):
    mean, std = 0.5, 0.4
    path = noise_path(noise.schedule, noise.num_timesteps)
    shares = TARGETS[noise.target](path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, 8, 8, generator=generator)
    num_steps = 250 if solver in ("ddpm", "ddim") else 50
    scheduler = make_solver(solver, num_steps=num_steps, noise=noise)
    random = {"generator": generator} if solver == "ddpm" else {}
    for timestep in scheduler.timesteps:
        t = round(float(timestep))
        a, b = path.signal[t], path.noise[t]
        away = x - a * mean
        clean = mean + a * std**2 / (a**2 * std**2 + b**2) * away
        drawn_noise = b / (a**2 * std**2 + b**2) * away
        prediction = shares.noise[t] * drawn_noise + shares.clean[t] * clean
        x = scheduler.step(prediction, timestep, x, **random).prev_sample
    assert float(x.mean()) == pytest.approx(mean, abs=0.025)
    assert float(x.std()) == pytest.approx(std, abs=0.025)


def test_ddim_on_the_straight_schedule_is_eulers_method_of_diffusers():
    noise = NoiseConfig(schedule="straight", target="flow")
    _, ours = drawn(noise, "ddim", 50, error=0.0)
    reference = FlowMatchEulerDiscreteScheduler()
    reference.set_timesteps(sigmas=[step / 50 for step in range(50, 0, -1)])
    x, factor = torch.randn(32, 8, 8, 8, generator=torch.Generator().manual_seed(0)), exact(noise)
    for t in reference.timesteps:
        x = reference.step(factor[round(float(t) * 0.999)] * x, t, x).prev_sample
    torch.testing.assert_close(ours, x)


def test_shifted_timesteps_are_those_of_diffusers():
    noise = NoiseConfig(schedule="straight", target="flow", timestep_shift=3.0)
    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(sigmas=[step / 50 for step in range(50, 0, -1)])
    solver = make_solver("ddim", num_steps=50, noise=noise)
    torch.testing.assert_close(solver.sigmas, reference.sigmas)
    assert float((solver.timesteps - 0.999 * reference.timesteps).abs().max()) <= 0.5001
    assert solver.timesteps[0] == 999


@pytest.mark.parametrize("solver", SOLVERS)
def test_too_few_or_too_many_steps_are_refused_with_the_range(solver):
    fewest, most = SOLVER_STEPS[solver]
    with pytest.raises(ValueError, match=f"{fewest} to {most}"):
        make_solver(solver, num_steps=fewest - 1)
    with pytest.raises(ValueError, match=f"{fewest} to {most}"):
        check_steps(solver, num_steps=most + 1)


def test_a_solver_that_is_not_made_for_the_schedule_is_refused_with_those_that_are():
    flow = NoiseConfig(schedule="straight", target="flow")
    with pytest.raises(ValueError, match=r"one of ddim, dpm\+\+, unipc .* got 'ddpm'"):
        make_solver("ddpm", num_steps=250, noise=flow)
