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

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.guidance import guide
from transfusion.package.format import PackageConfig
from transfusion.sample.batch import StepBatch
from transfusion.sample.cohort import Cohort, timesteps_of
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
    latent: Float[Tensor, "c h w"] = field(default_factory=lambda: torch.empty(0, 0, 0))
    """Noise, and less of it with every step."""
    timesteps: tuple[int, ...] = ()
    cohort: Cohort | None = None
    """With whom it is stepped, from its first step on."""
    place: int = 0
    """In its cohort."""
    clean: Float[Tensor, "c h w"] | None = None
    """What the last step took for the image, where previews are asked for."""

    def __post_init__(self) -> None:
        params, config = self.params, self.config
        self.timesteps = timesteps_of(params.solver, params.num_inference_steps, config.noise)
        self.latent = draw_noise([self.generator], config.latent_shape)[0].to(self.device)

    @property
    def is_done(self) -> bool:
        """Whether the latent is clean."""
        return self.step == len(self.timesteps)

    @property
    def timestep(self) -> int:
        """Of the step under way."""
        return self.timesteps[self.step]

    @property
    def preview(self) -> Float[Tensor, "c h w"] | None:
        """What the image would be if it were clean now, after the steps that are told of."""
        every = self.params.preview_every
        return self.clean if self.clean is not None and self.step % every == 0 else None

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
        """Reads the noisy image behind the whole prompt."""
        self.image = batch.add_image(self.latent, self.timestep)
        self.first_rows = [self._read(batch, self.branches.full)]

    def plan_guidance(self, batch: StepBatch) -> None:
        """Reads it in the other branches."""
        self.first_rows.extend(self._read(batch, branch) for branch in self._used()[1:])

    def _read(self, batch: StepBatch, branch: Branch) -> int:
        """Returns the row of the first patch."""
        special, num_patches = self.config.special, self.config.num_patches
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
        # BOI stays; the patches will be written over.
        branch.sequence.length += opening
        branch.is_open = True
        return row + opening


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
        """Reads the code that was drawn last, or what opens an image."""
        self.rows = [self._read(batch, self.branches.full)]

    def plan_guidance(self, batch: StepBatch) -> None:
        """Reads it in the other branch."""
        if self.branches.of_nothing is not None:
            self.rows.append(self._read(batch, self.branches.of_nothing))

    def _read(self, batch: StepBatch, branch: Branch) -> int:
        """Returns the last row."""
        special = self.config.special
        ids = [special.first_code + self.codes[-1]] if branch.is_open else [special.boi]
        if not branch.sequence.length:
            ids = [special.bos, *ids]
        hi = branch.sequence.length + 1 + torch.arange(len(ids)) if len(ids) > 1 else None
        branch.is_open = True
        return batch.add(branch.sequence, ids, hi=hi) + len(ids) - 1

    def scores(self, scores: Float[Tensor, "k v"]) -> Float[Tensor, " v"]:
        """Of the next code, guided."""
        if len(scores) == 1:
            return scores[0]
        conditional, unconditional = scores.log_softmax(dim=-1)
        return guide(conditional, unconditional, self.params.guidance_scale)
