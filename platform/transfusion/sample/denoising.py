"""One denoising step of all images under way: the way out of the transformer, guidance, and their solvers.

Axes: m = images, k = branches of all of them, c h w = latent, c2 = latent and variance.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from transfusion.diffusion.guidance import guide, guide_edit
from transfusion.diffusion.schedules import noise_path
from transfusion.diffusion.targets import clean_and_noise
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.batch import Passed
from transfusion.sample.cohort import Cohort
from transfusion.sample.drawing import LatentDrawing


@torch.inference_mode()
def denoise(
    model: TransfusionModel,
    config: PackageConfig,
    drawings: Sequence[LatentDrawing],
    passed: Passed,
) -> None:
    """Advances every image by what its branches predict."""
    decoded = _decode(model, drawings, passed)
    predicted = _guided(drawings, decoded, channels=config.latent_channels)
    for index, one in enumerate(drawings):
        if one.params.preview_every:
            guided = predicted[index : index + 1, : config.latent_channels]
            times = torch.tensor([one.timestep], device=guided.device)
            path = noise_path(config.noise.schedule, config.noise.num_timesteps)
            clean, _ = clean_and_noise(config.noise.target, guided, one.latent[None], times, path)
            one.clean = clean[0]
    for cohort, members in _cohorts(drawings, config):
        ones = [drawings[index] for index in members]
        latents = cohort.advance(predicted[members], [one.place for one in ones])
        for one, latent in zip(ones, latents, strict=True):
            one.latent = latent
            one.step += 1


def _decode(
    model: TransfusionModel, drawings: Sequence[LatentDrawing], passed: Passed
) -> Float[Tensor, "k c2 h w"]:
    """The way out of the transformer once for all branches, in fp32."""
    assert passed.encoded is not None
    device = passed.hidden.device
    num_patches = passed.encoded.patches.shape[1]
    first = torch.tensor([row for one in drawings for row in one.first_rows])
    images = torch.tensor([one.image for one in drawings for _ in one.first_rows])
    times = torch.tensor([one.timestep for one in drawings for _ in one.first_rows])
    where = rearrange(first, "k -> k 1") + torch.arange(num_patches)
    return model.decode_images(
        passed.hidden[where.to(device)], times.to(device), passed.encoded.of(images.to(device))
    ).float()


def _guided(
    drawings: Sequence[LatentDrawing], decoded: Float[Tensor, "k c2 h w"], *, channels: int
) -> Float[Tensor, "m c2 h w"]:
    """What each image goes on by.

    Any target is linear in the noise, given x_t: to guide it is to guide the noise. The variance is the
    conditional branch's, guided or not: so in GLIDE's sampler, DiT's and MonoFormer's.
    """
    device = decoded.device
    firsts, start = [], 0
    for one in drawings:
        firsts.append(start)
        start += len(one.first_rows)
    guided = decoded[torch.tensor(firsts, device=device)]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device).view(-1, 1, 1, 1)

    for branches in (2, 3):
        members = [i for i, one in enumerate(drawings) if len(one.first_rows) == branches]
        if not members:
            continue
        params = [drawings[index].params for index in members]
        of_prompt = column([one.guidance_scale for one in params])
        rows = torch.tensor([firsts[index] for index in members], device=device)
        full, *others = (decoded[rows + branch, :channels] for branch in range(branches))
        if branches == 2:
            full = guide(full, others[0], of_prompt)
        else:
            of_image = column([one.image_guidance_scale or 0.0 for one in params])
            full = guide_edit(full, *others, text_scale=of_prompt, image_scale=of_image)
        guided[torch.tensor(members, device=device), :channels] = full
    return guided


def _cohorts(
    drawings: Sequence[LatentDrawing], config: PackageConfig
) -> list[tuple[Cohort, list[int]]]:
    """Which drawings step together; those that begin are put into cohorts."""
    begun: dict[tuple[str, int], list[LatentDrawing]] = {}
    for one in drawings:
        if one.cohort is None:
            key = (one.params.solver, one.params.num_inference_steps)
            one.place = len(begun.setdefault(key, []))
            begun[key].append(one)
    for members in begun.values():
        params = members[0].params
        cohort = Cohort(
            params.solver,
            num_steps=params.num_inference_steps,
            noise=config.noise,
            latents=[one.latent for one in members],
            generators=[one.generator for one in members],
        )
        for one in members:
            one.cohort = cohort
    found: dict[int, tuple[Cohort, list[int]]] = {}
    for index, one in enumerate(drawings):
        assert one.cohort is not None
        found.setdefault(id(one.cohort), (one.cohort, []))[1].append(index)
    return list(found.values())
