"""Images stepped by one solver, against a solver for each."""

import pytest
import torch

from transfusion.diffusion.config import SOLVER_STEPS, NoiseConfig
from transfusion.diffusion.solvers import SOLVERS, make_solver
from transfusion.sample.cohort import Cohort, timesteps_of

SHAPE = (3, 4, 4)
NOISES = [NoiseConfig(), NoiseConfig(schedule="straight", target="flow", timestep_shift=2.0)]
CASES = [
    (name, noise)
    for name, solver in SOLVERS.items()
    for noise in NOISES
    if noise.schedule != "straight" or solver.build_straight is not None
]


@pytest.mark.parametrize(("name", "noise"), CASES, ids=lambda one: str(getattr(one, "target", one)))
def test_one_solver_steps_each_image_as_its_own_would_also_when_others_are_given_up(
    name, noise
) -> None:
    num_steps, _ = SOLVER_STEPS[name]
    begun = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    cohort = Cohort(
        name,
        num_steps=num_steps,
        noise=noise,
        latents=list(begun),
        generators=[torch.Generator().manual_seed(seed) for seed in range(4)],
    )
    alone = [make_solver(name, num_steps=num_steps, noise=noise) for _ in range(4)]
    own = [torch.Generator().manual_seed(seed) for seed in range(4)]
    states = [latent[None] for latent in begun]
    places = [0, 1, 2, 3]
    assert len(timesteps_of(name, num_steps, noise)) == len(alone[0].timesteps)
    for step, timestep in enumerate(alone[0].timesteps):
        assert timesteps_of(name, num_steps, noise)[step] == round(float(timestep))
        if step == 3:
            places = [0, 3]
        predicted = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(step + 1))
        latents = cohort.advance(predicted[places], places)
        for place, latent in zip(places, latents, strict=True):
            noise_of = {"generator": [own[place]]} if name == "ddpm" else {}
            states[place] = (
                alone[place]
                .step(predicted[place : place + 1], timestep, states[place], **noise_of)
                .prev_sample
            )
            torch.testing.assert_close(latent, states[place][0], atol=1e-5, rtol=1e-5)
