"""One image on its way from noise to a latent, step by step, beside whatever else is in the engine.

The conditional branch sees its whole prefix and BOI; the null branch sees exactly [BOI], as a dropped caption
left it in training, and at the same position ids (rotary attention is relative: any start would do), or BOI behind
a negative prompt. For an edit there is a branch between them, which sees BOS, the images of its prefix and BOI, as
a dropped instruction left it. A branch reads BOI in the first step that needs it; each step writes its patches
over those of the step before. The way into the transformer runs once a step, whatever the branches.
Axes: k = branches of a step, c h w = latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.guidance import guide, guide_edit
from transfusion.diffusion.schedules import noise_path
from transfusion.diffusion.solvers import make_solver, solver_input
from transfusion.diffusion.targets import clean_and_noise
from transfusion.package.format import PackageConfig
from transfusion.sample.batch import StepBatch
from transfusion.sample.pages import PagedSequence
from transfusion.sample.params import SamplingParams


def draw_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> Float[Tensor, "m c h w"]:
    """The noise that each image starts from, drawn on CPU: the same on every device."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@dataclass(slots=True)
class Branch:
    """What guidance knows of the prompt, all of it or less."""

    sequence: PagedSequence
    is_open: bool = False
    """Whether BOI was read."""


@dataclass(slots=True)
class Branches:
    """Those that a request draws with; only the first where there is no guidance."""

    full: Branch
    of_image: Branch | None = None
    of_nothing: Branch | None = None


@dataclass(slots=True)
class LatentDrawing:
    """An image of a model of latents."""

    branches: Branches
    params: SamplingParams
    config: PackageConfig
    generator: torch.Generator
    device: torch.device
    step: int = 0
    image: int = 0
    """Number among the images of the step under way."""
    first_rows: list[int] = field(default_factory=list)
    """Of each branch's patches in the step under way."""
    solver: Any = None
    state: Tensor = field(default_factory=lambda: torch.empty(0))
    clean: Tensor | None = None
    """What the last step took for the image, where previews are asked for."""

    def __post_init__(self) -> None:
        params, config = self.params, self.config
        self.solver = make_solver(
            params.solver, num_steps=params.num_inference_steps, noise=config.noise
        )
        # Solvers multiply by tables that they keep in the dtype of the betas: the state stays fp32.
        self.state = draw_noise([self.generator], config.latent_shape).to(self.device)

    @property
    def is_done(self) -> bool:
        """Whether the latent is clean."""
        return self.step == len(self.solver.timesteps)

    @property
    def timestep(self) -> int:
        """Of the step under way: the model knows integers only."""
        return round(float(self.solver.timesteps[self.step]))

    @property
    def preview(self) -> Float[Tensor, "c h w"] | None:
        """What the image would be if it were clean now, after the steps that are told of."""
        every = self.params.preview_every
        return self.clean[0] if self.clean is not None and self.step % every == 0 else None

    def _used(self) -> list[Branch]:
        """The branches that the step under way needs, the conditional one first."""
        params, branches = self.params, self.branches
        low, high = params.guidance_interval
        if (
            branches.of_nothing is None
            or not low <= self.timestep / self.config.num_timesteps <= high
        ):
            return [branches.full]
        middle = [branches.of_image] if branches.of_image is not None else []
        return [branches.full, *middle, branches.of_nothing]

    def plan(self, batch: StepBatch) -> None:
        """Reads the noisy image in every branch."""
        special, num_patches = self.config.special, self.config.num_patches
        self.image = batch.add_image(self.state[0], self.timestep)
        self.first_rows = []
        for branch in self._used():
            opening = int(not branch.is_open)
            start = branch.sequence.length
            stop = start + opening + num_patches
            hi = None
            if self.config.layout.image_attention == "causal":
                hi = torch.arange(start, stop) + 1
            elif opening:
                hi = torch.full((1 + num_patches,), stop)
                hi[0] = start + 1
            ids = [special.boi] * opening + [special.pad] * num_patches
            row = batch.add(branch.sequence, ids, images=[(self.image, opening)], hi=hi, keep=False)
            self.first_rows.append(row + opening)
            # BOI stays; the patches will be written over.
            branch.sequence.length += opening
            branch.is_open = True

    def take(self, decoded: Float[Tensor, "k c2 h w"]) -> None:
        """Goes on by what each branch predicts."""
        params, channels = self.params, self.state.shape[1]
        timestep = self.solver.timesteps[self.step]
        predicted, variance = decoded[:, :channels], decoded[:1, channels:]
        # Any target is linear in the noise, given x_t: to guide it is to guide the noise.
        full, *others = predicted.split(1)
        if len(others) == 2:
            assert params.image_guidance_scale is not None
            full = guide_edit(
                full,
                *others,
                text_scale=params.guidance_scale,
                image_scale=params.image_guidance_scale,
            )
        elif others:
            full = guide(full, others[0], params.guidance_scale)
        if params.preview_every:
            noise = self.config.noise
            times = torch.tensor([self.timestep], device=self.device)
            path = noise_path(noise.schedule, noise.num_timesteps)
            self.clean, _ = clean_and_noise(noise.target, full, self.state, times, path)
        # Guided or not, the variance is the conditional branch's: so in GLIDE's sampler, DiT's and MonoFormer's.
        is_last = self.step + 1 == len(self.solver.timesteps)
        given = solver_input(params.solver, full, variance, is_last=is_last)
        noise_of = {"generator": [self.generator]} if params.solver == "ddpm" else {}
        self.state = self.solver.step(given, timestep, self.state, **noise_of).prev_sample
        self.step += 1


@dataclass(slots=True)
class CodeDrawing:
    """An image of a model whose images are tokens: one code after the other, as many as an image has.

    The null branch sees [BOS, BOI], as documents whose caption was dropped have it.
    """

    branches: Branches
    params: SamplingParams
    config: PackageConfig
    generator: torch.Generator
    device: torch.device
    codes: list[int] = field(default_factory=list)
    uniform: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: list[int] = field(default_factory=list)
    """Of each branch's last token in the step under way."""

    def __post_init__(self) -> None:
        # Drawn on CPU, of each image's own: the same on every device and among other images.
        self.uniform = torch.rand(self.config.num_patches, generator=self.generator)

    @property
    def is_done(self) -> bool:
        """Whether all codes are drawn."""
        return len(self.codes) == self.config.num_patches

    def plan(self, batch: StepBatch) -> None:
        """Reads the code that was drawn last, or what opens an image, in every branch."""
        special = self.config.special
        self.rows = []
        for branch in (self.branches.full, self.branches.of_nothing):
            if branch is None:
                continue
            ids = [special.first_code + self.codes[-1]] if branch.is_open else [special.boi]
            if not branch.sequence.length:
                ids = [special.bos, *ids]
            hi = branch.sequence.length + 1 + torch.arange(len(ids)) if len(ids) > 1 else None
            self.rows.append(batch.add(branch.sequence, ids, hi=hi) + len(ids) - 1)
            branch.is_open = True

    def scores(self, scores: Float[Tensor, "k v"]) -> Float[Tensor, " v"]:
        """Of the next code, guided."""
        if len(scores) == 1:
            return scores[0]
        conditional, unconditional = scores.log_softmax(dim=-1)
        return guide(conditional, unconditional, self.params.guidance_scale)
