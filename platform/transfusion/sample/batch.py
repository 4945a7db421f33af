"""What one step reads: tokens and images of many sequences, laid behind each other; and the forward pass.

Axes: n = rows of the step, d = width, m = images of the step, p = patches, c h w = latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from transfusion.model.cache import PagedCache, Queries, RaggedStep
from transfusion.model.images import EncodedImages
from transfusion.model.transformer import TransfusionModel
from transfusion.sample.pages import PagedSequence


def bucket_of(num_rows: int) -> int:
    """The least of the numbers 1 to 15 times a power of two that holds so many: at most an eighth is padding."""
    unit = 1 << max(num_rows.bit_length() - 4, 0)
    return -(-num_rows // unit) * unit


class Passed(NamedTuple):
    """What a step gives."""

    hidden: Float[Tensor, "n d"]
    encoded: EncodedImages | None
    """Of the step's images, in their order."""


@dataclass(slots=True)
class StepBatch:
    """Collects what is to be read; rows are numbered as they come."""

    pad: int
    in_buckets: bool = False
    """Whether rows are padded to one of few numbers."""
    num_rows: int = 0
    ids: list[int] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    """From rows to position ids, of each of the queries."""
    queries: list[Queries] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """(image, its first row): an image may stand in several sequences."""

    def add_image(self, latent: Float[Tensor, "c h w"], timestep: int) -> int:
        """An image to be encoded once, wherever it is read."""
        self.latents.append(latent)
        self.timesteps.append(timestep)
        return len(self.latents) - 1

    def add(
        self,
        sequence: PagedSequence,
        ids: Sequence[int],
        *,
        images: Sequence[tuple[int, int]] = (),
        hi: Int[Tensor, " q"] | None = None,
        keep: bool = True,
    ) -> int:
        """Reads behind what a sequence holds; returns the first row.

        Args:
            ids: Of every position that is read; whatever at patches.
            images: (image, offset of its first patch).
            hi: One past the last slot that each position sees; None for all that are read.
            keep: Whether the sequence holds it from then on; else it will be overwritten.
        """
        start, first = sequence.length, self.num_rows
        stop = start + len(ids)
        if stop > sequence.room:
            raise ValueError(f"a sequence has {sequence.room} slots, {stop} are needed")
        self.ids.extend(ids)
        self.shifts.append(start + sequence.offset - first)
        self.queries.append(
            Queries(slots=sequence.slots[:stop], num=len(ids), is_run=sequence.is_run, hi=hi)
        )
        self.places.extend((image, first + offset) for image, offset in images)
        self.num_rows += len(ids)
        if keep:
            sequence.length = stop
        return first

    @torch.inference_mode()
    def forward(self, model: TransfusionModel, cache: PagedCache) -> Passed:
        """Reads everything at once."""
        device = cache.keys.device
        padding = (bucket_of(self.num_rows) if self.in_buckets else self.num_rows) - self.num_rows
        ids = self.ids + [self.pad] * padding
        hidden = model.embed_tokens(torch.tensor(ids, device=device)[None])
        encoded, patch_rows = None, None
        if self.latents:
            encoded = model.encode_images(
                torch.stack(self.latents).to(device), torch.tensor(self.timesteps, device=device)
            )
            num_patches = encoded.patches.shape[1]
            which, where = torch.tensor(self.places).unbind(dim=1)
            rows = rearrange(where, "i -> i 1") + torch.arange(num_patches)
            patch_rows = rearrange(rows, "i p -> (i p)").to(device)
            patches = encoded.patches[which.to(device)]
            hidden = hidden.index_copy(
                1, patch_rows, rearrange(patches, "i p d -> 1 (i p) d").to(hidden.dtype)
            )
        out = model.transform(
            hidden,
            position_ids=F.pad(self._positions(), (0, padding))[None].to(device),
            attention=RaggedStep.plan(cache, self.queries),
            images=patch_rows,
        )
        return Passed(hidden=out[0], encoded=encoded)

    def _positions(self) -> Int[Tensor, " n"]:
        nums = torch.tensor([one.num for one in self.queries])
        shifts = torch.tensor(self.shifts).repeat_interleave(nums, output_size=self.num_rows)
        return torch.arange(self.num_rows) + shifts
