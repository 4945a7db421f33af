"""What a prompt is made of, and how it is spelled for a step: ids, patches, and what each position sees.

Axes: q = positions, c h w = latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.package.format import PackageConfig
from transfusion.sample.batch import StepBatch
from transfusion.sample.pages import PagedSequence


@dataclass(frozen=True, slots=True)
class TextPart:
    """Token ids, special ids among them, none of them of a patch."""

    ids: tuple[int, ...]
    text: str | None = None
    """What they say, where that is less than the ids do: a text that ended within a token."""


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


def read(
    batch: StepBatch,
    sequence: PagedSequence,
    parts: Sequence[Part],
    *,
    config: PackageConfig,
    is_opened: bool = False,
) -> int:
    """Reads parts behind what a sequence holds, in the next step; returns the row of the last position.

    Args:
        is_opened: The first part is an image whose BOI was read already.
    """
    special, num_patches = config.special, config.num_patches
    ids: list[int] = []
    images: list[tuple[int, int]] = []
    blocks: list[tuple[int, int]] = []
    for part in parts:
        if isinstance(part, TextPart):
            ids.extend(part.ids)
        elif config.num_codes:
            codes = (special.first_code + part.latent.flatten()).tolist()
            ids.extend((special.boi, *codes, special.eoi))
        else:
            # BOI may lie one before the first row.
            first = len(ids) + (0 if is_opened and not ids else 1)
            ids.extend([special.boi] * (first - len(ids)) + [special.pad] * num_patches)
            images.append((batch.add_image(part.latent, 0), first))
            blocks.append((first, first + num_patches))
            ids.append(special.eoi)
    hi = sequence.length + 1 + torch.arange(len(ids))
    if config.layout.image_attention == "bidirectional":
        for first, last in blocks:
            hi[first:last] = sequence.length + last
    return batch.add(sequence, ids, images=images, hi=hi if len(ids) > 1 else None) + len(ids) - 1
