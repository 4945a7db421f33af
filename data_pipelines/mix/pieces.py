"""Documents with images that are longer than a sequence, in pieces that fit one."""

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A part of a document that lies in one sequence."""

    start: int
    """Its first position in the document."""
    length: int
    """Positions that it takes."""
    text_tokens: int
    images: int
    copied: int
    """Images that have a noised twin behind the piece, whose positions its length counts."""
    closes: bool
    """Its last position is EOS."""


def split(
    layout: str,
    text_lengths: Sequence[int],
    *,
    image_length: int,
    longest: int,
    twin_length: int = 0,
    num_conditions: int = 0,
) -> list[Piece]:
    """Cuts between segments, as late as possible; BOS stays with the first segment and EOS with the last.

    A text that is longer than a sequence by itself becomes a piece of its own, without an image: such pieces are
    cut where a sequence ends, like other text.

    Args:
        layout: 't' and 'i', the segments in order.
        text_lengths: Tokens of each text segment.
        image_length: Positions of an image; one with BOS and EOS must fit `longest`.
        longest: Positions that a piece with an image has at most.
        twin_length: Positions that an image takes more where something stands behind it in its piece.
        num_conditions: So many images, the first, take no more.
    """
    assert image_length + 2 <= longest
    pieces: list[Piece] = []
    start, length, tokens, images, copied = 0, 1, 0, 0, 0
    # What the image before would take more if something stood behind it; how many images there were.
    twin = number = 0
    texts = iter(text_lengths)
    for place, kind in enumerate(layout):
        own = image_length if kind == "i" else next(texts)
        size = own + (place == len(layout) - 1)
        begun = tokens or images
        if begun and length + size + (twin if own else 0) > longest:
            pieces.append(Piece(start, length, tokens, images, copied, closes=False))
            start += length - copied * twin_length
            length, tokens, images, copied, twin = 0, 0, 0, 0, 0
        length += size
        if own and twin:
            length, copied, twin = length + twin, copied + 1, 0
        tokens += own if kind == "t" else 0
        images += kind == "i"
        if kind == "i":
            twin = twin_length if number >= num_conditions else 0
            number += 1
    pieces.append(Piece(start, length, tokens, images, copied, closes=True))
    return pieces
