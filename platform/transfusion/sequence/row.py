"""One sequence of a batch: where the spans of its documents come to lie, and which positions have a text target.

Axes: n = positions, k = text targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from transfusion.sequence.document import Document, Sight, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.ranges import ImagePlace
from transfusion.sequence.special import SpecialIds


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Documents side by side, padding behind them."""

    token_ids: Int[np.ndarray, " n"]
    target_positions: Int[np.ndarray, " k"]
    document_lengths: list[int]
    """Positions of each, those of the twins behind it included."""
    places: list[ImagePlace]
    blocks: list[int]
    """Where the patches of each image slot begin: of a document's images, then of the twins of those with one."""


class _Placed(NamedTuple):
    """A span of a document and where it lies, BOI and EOI included."""

    is_image: bool
    first: int
    last: int
    """One past its end."""


def lay_out(
    documents: Sequence[Document[Any]],
    sees: Sequence[Sight],
    special: SpecialIds,
    sequence_length: int,
    layout: SequenceLayout,
    num_patches: int,
) -> Row:
    """The documents from the first position on.

    Args:
        sees: Of the image slots of this sequence, as `Row.blocks` has them; those of later sequences may follow.
        num_patches: Of every image.

    Raises:
        ValueError: The documents are longer than the sequence, an image has another number of patches, or there
            are more images and twins than `sees` tells of.
    """
    image_length, block = layout.image_length(num_patches), layout.block_length(num_patches)
    lengths = [layout.document_length(document) for document in documents]
    if sum(lengths) > sequence_length:
        raise ValueError(
            f"documents of {sum(lengths)} positions in a sequence of {sequence_length}"
        )
    token_ids = np.full(sequence_length, special.pad, np.int64)
    has_target = np.zeros(sequence_length, bool)
    places: list[ImagePlace] = []
    blocks: list[int] = []
    start = 0
    for document, length in zip(documents, lengths, strict=True):
        end = start + length
        twin = end - block * _num_copied(document)
        twins = range(twin, end, block)
        has_target[start : twin - 1] = True
        at = start
        before: list[_Placed] = []
        if document.opens:
            token_ids[at] = special.bos
            at += 1
        for span in document.spans:
            first = at
            if isinstance(span, TextSpan):
                at += len(span.ids)
                token_ids[first:at] = span.ids
                before.append(_Placed(False, first, at))
                continue
            if span.num_patches != num_patches:
                raise ValueError(
                    f"an image of {span.height_patches} x {span.width_patches} patches "
                    f"where the latents have {num_patches}"
                )
            if len(blocks) + len(twins) >= len(sees):
                raise ValueError(f"more images than the {len(sees)} image slots that are left")
            keeps = _kept(before, sees[len(blocks)], start, first)
            if span.copied and keeps is not None and keeps[1] < first:
                # Its twin would need a third range.
                keeps = first, first
            places.append(
                ImagePlace(
                    boi=first, num_patches=block, keeps=keeps, twin=twin if span.copied else None
                )
            )
            twin += block * span.copied
            blocks.append(first + 1)
            token_ids[first] = special.boi
            has_target[first : first + 1 + block] = False
            at += image_length
            token_ids[at - 1] = special.eoi
            before.append(_Placed(True, first, at))
        if document.closes:
            token_ids[at] = special.eos
        blocks += twins
        start = end
    return Row(
        token_ids=token_ids,
        target_positions=np.flatnonzero(has_target),
        document_lengths=lengths,
        places=places,
        blocks=blocks,
    )


def _kept(before: Sequence[_Placed], sight: Sight, start: int, boi: int) -> tuple[int, int] | None:
    """The positions before its BOI that an image still sees; None for all.

    One range must hold them: an image that would see texts on both sides of an image which it does not see, or
    images on both sides of a text, sees nothing.

    Args:
        start: Of the document. What comes first in it keeps sight of BOS, which knows nothing of what follows.
    """
    if sight == "all":
        return None
    spans = [span for span in before if span.last > span.first]
    kept = [i for i, span in enumerate(spans) if span.is_image == (sight == "images")]
    if sight == "nothing" or not kept or kept[-1] - kept[0] >= len(kept):
        return boi, boi
    return (spans[kept[0]].first if kept[0] else start), spans[kept[-1]].last


def _num_copied(document: Document[Any]) -> int:
    return sum(not isinstance(span, TextSpan) and span.copied for span in document.spans)
