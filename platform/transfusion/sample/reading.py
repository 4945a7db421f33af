"""Reading token ids and images into a key-value cache: many rows of different lengths at once.

Slots of a row are filled from the left, and a token's slot is its position in the document. Padding queries
write to the dummy slot and see slot 0.
Axes: b = rows, q = queries, d = width, c h w = latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.model.cache import CacheStep, KeyValueCache
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig


@dataclass(frozen=True, slots=True)
class TextPart:
    """Token ids, special ids among them, none of them of a patch."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A clean image, to be read at t = 0; BOI and EOI are read around it."""

    latent: Float[Tensor, "c h w"] | Int[Tensor, "1 h w"]
    """Where images are tokens, their codes."""


Part = TextPart | ImagePart


def length_of(parts: Sequence[Part], config: PackageConfig) -> int:
    """Positions that the parts take."""
    return sum(
        len(part.ids) if isinstance(part, TextPart) else config.num_patches + 2 for part in parts
    )


def _spelled(part: Part, config: PackageConfig) -> Part:
    """An image as its tokens, where images are tokens."""
    if isinstance(part, TextPart) or not config.num_codes:
        return part
    special = config.special
    codes = (special.first_code + part.latent.flatten()).tolist()
    return TextPart((special.boi, *codes, special.eoi))


@torch.inference_mode()
def read(
    model: TransfusionModel,
    cache: KeyValueCache,
    parts: Sequence[Sequence[Part]],
    *,
    lengths: Sequence[int],
    config: PackageConfig,
) -> Float[Tensor, "b d"]:
    """Reads each row's parts behind the `lengths` positions it holds already; returns its last hidden state."""
    parts = [[_spelled(part, config) for part in row] for row in parts]
    device = cache.keys.device
    special, num_patches = config.special, config.num_patches
    longest = max(length_of(row, config) for row in parts)
    ids = torch.full((len(parts), longest), special.pad)
    hi = torch.ones((len(parts), longest), dtype=torch.long)
    last = []
    patch_rows: list[int] = []
    patch_columns: list[int] = []
    latents: list[Tensor] = []
    for b, row in enumerate(parts):
        at = 0
        for part in row:
            start = at
            if isinstance(part, TextPart):
                at += len(part.ids)
                ids[b, start:at] = torch.tensor(part.ids)
            else:
                at += num_patches + 2
                ids[b, start], ids[b, at - 1] = special.boi, special.eoi
                latents.append(part.latent)
                patch_rows.extend([b] * num_patches)
                patch_columns.extend(range(start + 1, at - 1))
            hi[b, start:at] = torch.arange(start, at) + 1 + lengths[b]
            if isinstance(part, ImagePart) and config.layout.image_attention == "bidirectional":
                hi[b, start + 1 : at - 1] = at - 1 + lengths[b]
        last.append(at - 1)
    columns = rearrange(torch.arange(longest), "q -> 1 q")
    real = columns <= rearrange(torch.tensor(last), "b -> b 1")
    positions = torch.where(real, columns + rearrange(torch.tensor(lengths), "b -> b 1"), 0)
    hidden = model.embed_tokens(ids.to(device))
    images = None
    if latents:
        clean = torch.stack(latents).to(device)
        encoded = model.encode_images(clean, torch.zeros(len(latents), dtype=torch.long).to(device))
        patches = rearrange(encoded.patches, "m p d -> (m p) d").to(hidden.dtype)
        there = torch.tensor([patch_rows, patch_columns], device=device)
        hidden = hidden.index_put((there[0], there[1]), patches)
        images = there[0] * longest + there[1]
    step = CacheStep.plan(
        cache,
        slots=torch.where(real, positions, cache.dummy_slot).to(device),
        lo=torch.zeros_like(hi).to(device),
        hi=hi.to(device),
        num_keys=int(hi.max()),
    )
    out = model.transform(hidden, position_ids=positions.to(device), attention=step, images=images)
    return out[torch.arange(len(parts), device=device), torch.tensor(last, device=device)]


def read_tokens(
    model: TransfusionModel,
    cache: KeyValueCache,
    ids: Int[Tensor, " b"],
    *,
    lengths: Sequence[int],
    writes: Sequence[bool],
) -> Float[Tensor, "b d"]:
    """Reads one token a row; rows that do not write take part and are left as they were."""
    device = cache.keys.device
    at = rearrange(torch.tensor(lengths), "b -> b 1")
    writing = rearrange(torch.tensor(writes), "b -> b 1")
    hi = torch.where(writing, at + 1, 1)
    step = CacheStep.plan(
        cache,
        slots=torch.where(writing, at, cache.dummy_slot).to(device),
        lo=torch.zeros_like(hi).to(device),
        hi=hi.to(device),
        num_keys=int(hi.max()),
    )
    out = model.transform(
        model.embed_tokens(rearrange(ids, "b -> b 1").to(device)),
        position_ids=at.to(device),
        attention=step,
    )
    return rearrange(out, "b 1 d -> b d")
