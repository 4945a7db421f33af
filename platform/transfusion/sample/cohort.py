"""Images abreast: begun in one step with one solver and as many steps, so that one scheduler steps all of them.

diffusers' schedulers count their steps and keep what they were given, for a whole batch. Every image advances by
one in each step of the engine, so those that began together stay together, and whoever else joins or leaves. What
a solver does to an image is what it does to it alone: its noise is drawn from its own generator.
Axes: m = images of the cohort, j = those of them that are still drawn, c h w = latent.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.config import NoiseConfig, SolverName
from transfusion.diffusion.solvers import make_solver, solver_input


@lru_cache(maxsize=64)
def timesteps_of(name: SolverName, num_steps: int, noise: NoiseConfig) -> tuple[int, ...]:
    """Of every step: the model knows integers only."""
    timesteps = make_solver(name, num_steps=num_steps, noise=noise).timesteps
    return tuple(round(timestep) for timestep in timesteps.tolist())


class Cohort:
    """One scheduler and the latents that it steps."""

    def __init__(
        self,
        name: SolverName,
        *,
        num_steps: int,
        noise: NoiseConfig,
        latents: Sequence[Float[Tensor, "c h w"]],
        generators: Sequence[torch.Generator],
    ) -> None:
        self._name: SolverName = name
        self._solver = make_solver(name, num_steps=num_steps, noise=noise)
        # Solvers multiply by tables that they keep in the dtype of the betas: the latents stay fp32.
        self._latents: Float[Tensor, "m c h w"] = torch.stack(list(latents))
        self._noise_of = {"generator": list(generators)} if name == "ddpm" else {}
        self._step = 0

    def advance(
        self, predicted: Float[Tensor, "j c2 h w"], places: Sequence[int]
    ) -> Float[Tensor, "j c h w"]:
        """One step on.

        Args:
            predicted: Guided, of the images at `places`; behind the latent's channels those of the variance.
                The others were given up: what becomes of them is of no account.
        """
        latents, timesteps = self._latents, self._solver.timesteps
        alive = torch.tensor(places, device=predicted.device)
        if len(places) < len(latents):
            shape = (len(latents), *predicted.shape[1:])
            predicted = predicted.new_zeros(shape).index_copy(0, alive, predicted)
        channels = latents.shape[1]
        given = solver_input(
            self._name,
            predicted[:, :channels],
            predicted[:, channels:],
            is_last=self._step + 1 == len(timesteps),
        )
        step = self._solver.step(given, timesteps[self._step], latents, **self._noise_of)
        self._latents = step.prev_sample
        self._step += 1
        return self._latents[alive]
