"""What the model is given: packed sequences as tensors of static shapes.

Axes: b = sequences, n = positions, m = image slots, p = patches of an image, r = rows with a text target,
c h w = latent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from transfusion.sequence.document import Document, ImageInput, Sight, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.ranges import key_ranges
from transfusion.sequence.row import Row, lay_out
from transfusion.sequence.special import SpecialIds


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """A micro-batch. Slots and rows that are not used have weight 0 and harmless contents."""

    token_ids: Int[Tensor, "b n"]
    """PAD at patches and at padding."""

    position_ids: Int[Tensor, "b n"]
    """Restart at each document; those of a twin are its clean copy's."""

    lo: Int[Tensor, "b n"]
    """First key that each query sees."""

    hi: Int[Tensor, "b n"]
    """One past the last key that each query sees."""

    latents: Float[Tensor, "m c h w"]
    """Clean and normalised."""

    noise: Float[Tensor, "m c h w"]

    timesteps: Int[Tensor, " m"]

    image_positions: Int[Tensor, "m p"]
    """Index into the flattened (b n) of each patch, and of the time token before them where the layout has one;
    b * n, one past the end, for unused slots."""

    image_weight: Float[Tensor, " m"]
    """1 for an image that has a loss, 0 for a condition, a clean copy and an unused slot."""

    text_rows: Int[Tensor, " r"]
    """Index into the flattened (b n) of the positions that have a text target; 0 for unused rows."""

    text_targets: Int[Tensor, " r"]

    text_weight: Float[Tensor, " r"]
    """1 for a target, 0 for an unused row."""

    lo2: Int[Tensor, "b n"] | None = None
    """First key of the second range of each query. In plans that know no second ranges there is none of these."""

    hi2: Int[Tensor, "b n"] | None = None
    """One past the last key of the second range; equal to `lo2` where a query has only one."""

    clean: Bool[Tensor, " m"] | None = None
    """Slots that the model is given without noise, and that have no loss. None where a plan has no such images."""

    @property
    def present(self) -> Bool[Tensor, " m"]:
        """Slots that hold an image, whether it has a loss or not."""
        return self.image_positions[:, 0] < self.token_ids.numel()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """The same batch in memory that a GPU copies from without the host."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if value is not None:
                values[name] = change(value)
        return PackedBatch(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSlots:
    """The images of a batch in the order in which they lie in its sequences; slots behind them stay zero.

    A document's twins follow its images, in the order of these.
    """

    latents: Float32[np.ndarray, "m c h w"]
    noise: Float32[np.ndarray, "m c h w"]
    timesteps: Int64[np.ndarray, " m"]
    sees: list[Sight]
    clean: Bool[np.ndarray, " m"]
    """Is given without noise and has no loss: a condition, or the clean copy of what has a twin."""

    @classmethod
    def empty(cls, count: int, latent_shape: tuple[int, int, int], *, used: int) -> "ImageSlots":
        """Slots to be filled in place, for latents are large.

        Args:
            used: So many latents and noises, the first, are left undefined: the caller fills them.
        """
        latents, noise = np.empty((2, count, *latent_shape), np.float32)
        latents[used:], noise[used:] = 0.0, 0.0
        return cls(
            latents=latents,
            noise=noise,
            timesteps=np.zeros(count, np.int64),
            sees=["all"] * count,
            clean=np.zeros(count, bool),
        )


def assemble(
    sequences: Sequence[Sequence[Document[ImageInput]]],
    *,
    layout: SequenceLayout,
    special: SpecialIds,
    sequence_length: int,
    image_slots: int,
    text_rows: int,
    latent_shape: tuple[int, int, int],
    conditions: bool = False,
) -> PackedBatch:
    """A batch of the documents that were packed into each sequence; an empty sequence is all padding.

    Args:
        latent_shape: Channels, height and width of every latent.
        conditions: See `assemble_slots`.

    Raises:
        ValueError: A sequence, the image slots or the text rows overflow, a latent has another shape, or an image
            is a condition, or copied, where none may be.
    """
    images: list[tuple[ImageInput, bool]] = []
    for document in (document for documents in sequences for document in documents):
        spans = [span for span in document.spans if not isinstance(span, TextSpan)]
        images += [(span.reference, span.copied or span.reference.condition) for span in spans]
        images += [(span.reference, False) for span in spans if span.copied]
    if len(images) > image_slots:
        raise ValueError(f"{len(images)} images for {image_slots} image slots")
    slots = ImageSlots.empty(image_slots, latent_shape, used=len(images))
    for slot, (image, clean) in enumerate(images):
        if image.latent.shape != latent_shape or image.noise.shape != latent_shape:
            raise ValueError(
                f"latent {image.latent.shape}, noise {image.noise.shape}: must be {latent_shape}"
            )
        copy = clean and not image.condition
        slots.latents[slot], slots.noise[slot] = image.latent, 0.0 if copy else image.noise
        slots.timesteps[slot], slots.sees[slot] = 0 if copy else image.timestep, image.sees
        slots.clean[slot] = clean
    return assemble_slots(
        sequences,
        slots,
        layout=layout,
        special=special,
        sequence_length=sequence_length,
        text_rows=text_rows,
        conditions=conditions,
    )


def assemble_slots(
    sequences: Sequence[Sequence[Document[Any]]],
    slots: ImageSlots,
    *,
    layout: SequenceLayout,
    special: SpecialIds,
    sequence_length: int,
    text_rows: int,
    conditions: bool = False,
) -> PackedBatch:
    """A batch whose images are in their slots: the first image of the first document in slot 0, and so on.

    The batch shares the memory of the slots. A position has a text target when it is no patch and no BOI and
    the next position is of the same document. So BOI is a target (it is how the model decides to draw) and EOI
    never is (it is appended by rule):

        BOS c1 c2 BOI p p EOI EOS      c1 c2 BOI - - - EOS -

    Args:
        conditions: Whether any batch of the plan may hold conditions: then this one says which slots are clean,
            and has second ranges, be they needed or not, so that all batches are of one shape. A layout with clean
            copies says the same.

    Raises:
        ValueError: A sequence, the slots or the text rows overflow; or an image is a condition, or sees only text
            or only images, and the plan has no conditions; or one is copied, and the layout has no clean copies.
    """
    image_slots = len(slots.latents)
    num_patches = layout.num_patches(*slots.latents.shape[2:])
    rows: list[Row] = []
    num_images = 0
    for documents in sequences:
        sees = slots.sees[num_images:]
        rows.append(lay_out(documents, sees, special, sequence_length, layout, num_patches))
        num_images += len(rows[-1].blocks)
    targets = np.concatenate(
        [s * sequence_length + row.target_positions for s, row in enumerate(rows)]
        or [np.zeros(0, np.int64)]
    )
    if len(targets) > text_rows:
        raise ValueError(f"{len(targets)} text targets for {text_rows} text rows")

    image_weight = np.zeros(image_slots, np.float32)
    image_weight[:num_images] = ~slots.clean[:num_images]
    block = layout.block_length(num_patches)
    image_positions = np.full((image_slots, block), len(rows) * sequence_length, np.int64)
    first_patches = [
        s * sequence_length + first for s, row in enumerate(rows) for first in row.blocks
    ]
    image_positions[:num_images] = (
        np.array(first_patches, np.int64)[:, None] + np.arange(block)[None]
    )

    token_ids = np.stack([row.token_ids for row in rows])
    ranges = [
        key_ranges(
            document_lengths=row.document_lengths,
            images=row.places,
            sequence_length=sequence_length,
            image_attention=layout.image_attention,
        )
        for row in rows
    ]
    second = {name: np.stack([getattr(r, name) for r in ranges]) for name in ("lo2", "hi2")}
    has_clean = conditions or layout.clean_copies
    if not has_clean and (slots.clean.any() or (second["hi2"] > second["lo2"]).any()):
        raise ValueError(
            "an image is a condition, or sees text or images alone, without `conditions`, or is copied in a "
            "layout without `clean_copies`"
        )
    num_targets = len(targets)
    row_index = np.zeros(text_rows, np.int64)
    row_index[:num_targets] = targets
    text_targets = np.full(text_rows, special.pad, np.int64)
    # A target's successor lies in the same row, so the flat index may step by one.
    text_targets[:num_targets] = token_ids.reshape(-1)[targets + 1]
    text_weight = np.zeros(text_rows, np.float32)
    text_weight[:num_targets] = 1.0
    return PackedBatch(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.from_numpy(np.stack([r.position_ids for r in ranges])),
        lo=torch.from_numpy(np.stack([r.lo for r in ranges])),
        hi=torch.from_numpy(np.stack([r.hi for r in ranges])),
        latents=torch.from_numpy(slots.latents),
        noise=torch.from_numpy(slots.noise),
        timesteps=torch.from_numpy(slots.timesteps),
        image_positions=torch.from_numpy(image_positions),
        image_weight=torch.from_numpy(image_weight),
        text_rows=torch.from_numpy(row_index),
        text_targets=torch.from_numpy(text_targets),
        text_weight=torch.from_numpy(text_weight),
        lo2=torch.from_numpy(second["lo2"]) if has_clean else None,
        hi2=torch.from_numpy(second["hi2"]) if has_clean else None,
        clean=torch.from_numpy(slots.clean) if has_clean else None,
    )
