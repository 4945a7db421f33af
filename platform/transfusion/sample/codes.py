"""Drawing images as codes, one after the other, for models whose images are tokens.

Between BOI and EOI only codes may come, and as many as an image has: the length is no choice of the model's.
Both branches of guidance run in one batch. The conditional branch sees its whole prefix; the null branch sees
[BOS, BOI], as documents whose caption was dropped have it.
Axes: m = images, b = rows of the work cache (branch m), p = codes of an image, v = vocabulary, k = codebook.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from transfusion.diffusion.guidance import guide
from transfusion.model.cache import KeyValueCache
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.denoise import Watch, with_null_rows
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import read_tokens
from transfusion.sample.text import next_tokens


@torch.inference_mode()
def draw_codes(
    model: TransfusionModel,
    prefixes: KeyValueCache,
    *,
    lengths: Sequence[int],
    params: SamplingParams,
    generators: Sequence[torch.Generator],
    config: PackageConfig,
    watch: Watch | None = None,
) -> Int[Tensor, "m 1 h w"]:
    """The codes of one image for each row of `prefixes`, which are as `denoise.draw_images` takes them.

    Args:
        params: Guidance, temperature and probability of codes, shared by all; seeds are the generators'.
    """
    num_images, special = len(lengths), config.special
    guided = params.guidance_scale != 1
    cache, held = prefixes, list(lengths)
    if guided:
        cache, held = with_null_rows(prefixes), held + [0] * num_images
        opens = [False] * num_images + [True] * num_images
        opening = torch.full((len(held),), special.bos)
        read_tokens(model, cache, opening, lengths=held, writes=opens)
        held[num_images:] = [1] * num_images
    # Drawn on CPU, of each image's own: the same on every device and among other images.
    uniform = torch.stack([torch.rand(config.num_patches, generator=one) for one in generators])
    device = prefixes.keys.device
    everyone = [True] * len(held)
    last = torch.full((len(held),), special.boi, device=device)
    drawn: list[Int[Tensor, " m"]] = []
    for place in range(config.num_patches):
        if watch is not None:
            watch()
        hidden = read_tokens(model, cache, last, lengths=held, writes=everyone)
        held = [length + 1 for length in held]
        scores = model.logits(hidden)[:, special.first_code :].float()
        if guided:
            conditional, unconditional = scores.log_softmax(dim=-1).chunk(2)
            scores = guide(conditional, unconditional, params.guidance_scale)
        code = next_tokens(
            scores,
            allowed=torch.ones_like(scores, dtype=torch.bool),
            temperature=torch.full((num_images,), params.code_temperature, device=device),
            top_p=torch.full((num_images,), params.code_top_p, device=device),
            top_k=torch.zeros(num_images, dtype=torch.long, device=device),
            uniform=uniform[:, place].to(device),
        )
        drawn.append(code)
        last = (code + special.first_code).repeat(2 if guided else 1)
    codes = torch.stack(drawn, dim=1)
    return rearrange(codes, "m (h w) -> m 1 h w", h=config.latent_height)
