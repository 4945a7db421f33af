"""Drawing images behind prefixes that lie in a cache: both branches of guidance in one batch.

The conditional branch sees its whole prefix and BOI; the null branch sees exactly [BOI], as a dropped caption
left it in training, and at the same position ids (rotary attention is relative: any start would do). For an edit
there is a branch between them, which sees BOS, the images of its prefix and BOI, as a dropped instruction left it.
Rows of the work cache: conditional rows first, those of images alone, then null rows. Prefixes stay in the cache;
each step writes its patches over those of the step before.
Axes: m = images, b = rows of the work cache (branch m), p = patches, d = width, c h w = latent.
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.diffusion.guidance import guide, guide_edit
from transfusion.diffusion.solvers import make_solver, solver_input
from transfusion.model.cache import CacheStep, KeyValueCache
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.params import SamplingParams

Watch = Callable[[], None]
"""Called at every step; raises to give up."""


def draw_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> Float[Tensor, "m c h w"]:
    """The noise that each image starts from, drawn on CPU: the same on every device."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@torch.inference_mode()
def draw_images(
    model: TransfusionModel,
    prefixes: KeyValueCache,
    *,
    lengths: Sequence[int],
    params: SamplingParams,
    generators: Sequence[torch.Generator],
    config: PackageConfig,
    watch: Watch | None = None,
    conditions: Sequence[int] | None = None,
) -> Float[Tensor, "m c h w"]:
    """One normalised latent for each row of `prefixes`.

    Args:
        prefixes: One row an image, BOI not read yet; it has room for an image and is written to.
        lengths: Positions that each prefix holds.
        params: Solver, steps and guidance, shared by all; seeds are the generators'.
        generators: One an image, on CPU.
        conditions: One past the images that each prefix begins with, where `image_guidance_scale` is given.
    """
    device = prefixes.keys.device
    num_images, num_patches = len(lengths), config.num_patches
    scales = (params.guidance_scale, params.image_guidance_scale)
    guided, edits = scales not in ((1, None), (1, 1)), conditions is not None
    branches = 1 + guided + (guided and edits)
    cache = with_null_rows(prefixes, full=branches - 1) if guided else prefixes
    none = [0] * num_images
    first = torch.tensor(list(lengths) * max(branches - 1, 1) + none * guided, device=device)
    boi_positions = torch.tensor(list(lengths) * branches, device=device)
    lo, second = torch.zeros_like(first), None
    if guided and conditions is not None:
        lo[num_images : 2 * num_images] = first[:num_images]
        second = torch.tensor([*none, *conditions, *none], device=device)
    boi = torch.full_like(first, config.special.boi)
    model.transform(
        model.embed_tokens(rearrange(boi, "b -> b 1")),
        position_ids=rearrange(boi_positions, "b -> b 1"),
        attention=CacheStep.plan(
            cache,
            slots=rearrange(first, "b -> b 1"),
            lo=rearrange(lo, "b -> b 1"),
            hi=rearrange(first + 1, "b -> b 1"),
            num_keys=max(lengths) + 1,
            second=_from_the_first(second, 1),
        ),
    )
    order = torch.arange(1, num_patches + 1, device=device)
    slots = rearrange(first, "b -> b 1") + order
    hi = slots + 1
    if config.layout.image_attention == "bidirectional":
        hi = hi[:, -1:].expand_as(hi)
    attention = CacheStep.plan(
        cache,
        slots=slots,
        lo=rearrange(lo, "b -> b 1").expand_as(hi),
        hi=hi,
        num_keys=max(lengths) + 1 + num_patches,
        second=_from_the_first(second, num_patches),
    )
    position_ids = rearrange(boi_positions, "b -> b 1") + order
    every = torch.arange(position_ids.numel(), device=device)

    solver = make_solver(
        params.solver,
        num_steps=params.num_inference_steps,
        noise=config.noise,
    )
    # Solvers multiply by tables that they keep in the dtype of the betas: the state stays fp32.
    state = draw_noise(generators, config.latent_shape).to(device)
    noise = {"generator": list(generators)} if params.solver in ("ddpm",) else {}
    for index, timestep in enumerate(solver.timesteps):
        if watch is not None:
            watch()
        times = torch.full((num_images,), round(float(timestep)), device=device)
        encoded = model.encode_images(state, times).for_branches(branches)
        hidden = model.transform(
            encoded.patches, position_ids=position_ids, attention=attention, images=every
        )
        decoded = model.decode_images(hidden, times.repeat(branches), encoded).float()
        prediction, variance = decoded[:, : state.shape[1]], decoded[:, state.shape[1] :]
        if guided:
            # Any target is linear in the noise, given x_t: to guide it is to guide the noise.
            full, *of_image, of_nothing = prediction.chunk(branches)
            if params.image_guidance_scale is None:
                prediction = guide(full, of_nothing, params.guidance_scale)
            else:
                prediction = guide_edit(
                    full,
                    of_image[0],
                    of_nothing,
                    text_scale=params.guidance_scale,
                    image_scale=params.image_guidance_scale,
                )
        # Guided or not, the variance is the conditional branch's: so in GLIDE's sampler, DiT's and MonoFormer's.
        given = solver_input(
            params.solver,
            prediction,
            variance[:num_images],
            is_last=index + 1 == len(solver.timesteps),
        )
        state = solver.step(given, timestep, state, **noise).prev_sample
    return state


def _from_the_first(
    ends: Int[Tensor, " b"] | None, num_queries: int
) -> tuple[Tensor, Tensor] | None:
    """The slots before `ends`, for every query of a row."""
    if ends is None:
        return None
    last = rearrange(ends, "b -> b 1").expand(-1, num_queries)
    return torch.zeros_like(last), last


def with_null_rows(prefixes: KeyValueCache, *, full: int = 1) -> KeyValueCache:
    """Copies, and as many empty rows behind as one has, for the null branch of guidance."""
    return KeyValueCache(
        keys=torch.cat([prefixes.keys] * full + [torch.zeros_like(prefixes.keys)], dim=1),
        values=torch.cat([prefixes.values] * full + [torch.zeros_like(prefixes.values)], dim=1),
    )
