"""What the model is given: packed sequences as tensors of static shapes.

Axes: b = sequences, n = positions, m = image slots, p = patches of an image, r = rows with a text target,
c h w = latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from transfusion.sequence.document import Document, ImageInput, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.ranges import ImagePlace, key_ranges
from transfusion.sequence.special import SpecialIds


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """A micro-batch. Slots and rows that are not used have weight 0 and harmless contents."""

    token_ids: Int[Tensor, "b n"]
    """PAD at patches and at padding."""

    position_ids: Int[Tensor, "b n"]
    """Restart at each document."""

    lo: Int[Tensor, "b n"]
    """First key that each query sees."""

    hi: Int[Tensor, "b n"]
    """One past the last key that each query sees."""

    latents: Float[Tensor, "m c h w"]
    """Clean and normalised."""

    noise: Float[Tensor, "m c h w"]

    timesteps: Int[Tensor, " m"]

    image_positions: Int[Tensor, "m p"]
    """Index into the flattened (b n) of each patch; b * n, one past the end, for unused slots."""

    image_weight: Float[Tensor, " m"]
    """1 for an image, 0 for an unused slot."""

    text_rows: Int[Tensor, " r"]
    """Index into the flattened (b n) of the positions that have a text target; 0 for unused rows."""

    text_targets: Int[Tensor, " r"]

    text_weight: Float[Tensor, " r"]
    """1 for a target, 0 for an unused row."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on another device."""
        return PackedBatch(
            **{
                field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
                for field in fields(self)
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSlots:
    """The images of a batch in the order in which they lie in its sequences; slots behind them stay zero."""

    latents: Float32[np.ndarray, "m c h w"]
    noise: Float32[np.ndarray, "m c h w"]
    timesteps: Int64[np.ndarray, " m"]
    drop_caption: Bool[np.ndarray, " m"]

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
            drop_caption=np.zeros(count, bool),
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
) -> PackedBatch:
    """A batch of the documents that were packed into each sequence; an empty sequence is all padding.

    Args:
        latent_shape: Channels, height and width of every latent.

    Raises:
        ValueError: A sequence, the image slots or the text rows overflow, or a latent has another shape.
    """
    images = [
        span.reference
        for documents in sequences
        for document in documents
        for span in document.spans
        if not isinstance(span, TextSpan)
    ]
    if len(images) > image_slots:
        raise ValueError(f"{len(images)} images for {image_slots} image slots")
    slots = ImageSlots.empty(image_slots, latent_shape, used=len(images))
    for slot, image in enumerate(images):
        if image.latent.shape != latent_shape or image.noise.shape != latent_shape:
            raise ValueError(
                f"latent {image.latent.shape}, noise {image.noise.shape}: must be {latent_shape}"
            )
        slots.latents[slot], slots.noise[slot] = image.latent, image.noise
        slots.timesteps[slot], slots.drop_caption[slot] = image.timestep, image.drop_caption
    return assemble_slots(
        sequences,
        slots,
        layout=layout,
        special=special,
        sequence_length=sequence_length,
        text_rows=text_rows,
    )


def assemble_slots(
    sequences: Sequence[Sequence[Document[Any]]],
    slots: ImageSlots,
    *,
    layout: SequenceLayout,
    special: SpecialIds,
    sequence_length: int,
    text_rows: int,
) -> PackedBatch:
    """A batch whose images are in their slots: the first image of the first document in slot 0, and so on.

    The batch shares the memory of the slots. A position has a text target when it is no patch and no BOI and
    the next position is of the same document. So BOI is a target (it is how the model decides to draw) and EOI
    never is (it is appended by rule):

        BOS c1 c2 BOI p p EOI EOS      c1 c2 BOI - - - EOS -

    Raises:
        ValueError: A sequence, the slots or the text rows overflow.
    """
    image_slots = len(slots.latents)
    num_patches = layout.num_patches(*slots.latents.shape[2:])
    rows: list[_Row] = []
    num_images = 0
    for documents in sequences:
        dropped = slots.drop_caption[num_images:]
        rows.append(_lay_out(documents, dropped, special, sequence_length, layout, num_patches))
        num_images += len(rows[-1].places)
    targets = np.concatenate(
        [s * sequence_length + row.target_positions for s, row in enumerate(rows)]
        or [np.zeros(0, np.int64)]
    )
    if len(targets) > text_rows:
        raise ValueError(f"{len(targets)} text targets for {text_rows} text rows")

    image_weight = np.zeros(image_slots, np.float32)
    image_weight[:num_images] = 1.0
    image_positions = np.full((image_slots, num_patches), len(rows) * sequence_length, np.int64)
    first_patches = [
        s * sequence_length + place.boi + 1 for s, row in enumerate(rows) for place in row.places
    ]
    image_positions[:num_images] = (
        np.array(first_patches, np.int64)[:, None] + np.arange(num_patches)[None]
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
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    token_ids: Int[np.ndarray, " n"]
    target_positions: Int[np.ndarray, " k"]
    document_lengths: list[int]
    places: list[ImagePlace]


def _lay_out(
    documents: Sequence[Document[Any]],
    dropped: Bool[np.ndarray, " _"],
    special: SpecialIds,
    sequence_length: int,
    layout: SequenceLayout,
    num_patches: int,
) -> _Row:
    image_length = layout.image_length(num_patches)
    lengths = [_length(document, image_length) for document in documents]
    if sum(lengths) > sequence_length:
        raise ValueError(
            f"documents of {sum(lengths)} positions in a sequence of {sequence_length}"
        )
    token_ids = np.full(sequence_length, special.pad, np.int64)
    has_target = np.zeros(sequence_length, bool)
    places: list[ImagePlace] = []
    start = 0
    for document, length in zip(documents, lengths, strict=True):
        end = start + length
        has_target[start : end - 1] = True
        at = start
        if document.opens:
            token_ids[at] = special.bos
            at += 1
        for span in document.spans:
            if isinstance(span, TextSpan):
                token_ids[at : at + len(span.ids)] = span.ids
                at += len(span.ids)
                continue
            if span.num_patches != num_patches:
                raise ValueError(
                    f"an image of {span.height_patches} x {span.width_patches} patches "
                    f"where the latents have {num_patches}"
                )
            if len(places) == len(dropped):
                raise ValueError(f"more images than the {len(dropped)} image slots that are left")
            drop_caption = bool(dropped[len(places)])
            places.append(ImagePlace(boi=at, num_patches=num_patches, drop_caption=drop_caption))
            token_ids[at] = special.boi
            has_target[at : at + 1 + num_patches] = False
            at += image_length
            token_ids[at - 1] = special.eoi
        if document.closes:
            token_ids[at] = special.eos
        start = end
    return _Row(
        token_ids=token_ids,
        target_positions=np.flatnonzero(has_target),
        document_lengths=lengths,
        places=places,
    )


def _length(document: Document[Any], image_length: int) -> int:
    length = document.opens + document.closes
    for span in document.spans:
        length += len(span.ids) if isinstance(span, TextSpan) else image_length
    return length
