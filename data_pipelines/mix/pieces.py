"""Documents with images that are longer than a sequence, in pieces that fit one."""

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Positions `start` to `start + length` of a document."""

    start: int
    length: int
    text_tokens: int
    images: int
    closes: bool
    """Its last position is EOS."""


def split(
    layout: str, text_lengths: Sequence[int], *, image_length: int, longest: int
) -> list[Piece]:
    """Cuts between segments, as late as possible; BOS stays with the first segment and EOS with the last.

    A text that is longer than a sequence by itself becomes a piece of its own, without an image: such pieces are
    cut where a sequence ends, like other text.

    Args:
        layout: 't' and 'i', the segments in order.
        text_lengths: Tokens of each text segment.
        image_length: Positions of an image; one with BOS and EOS must fit `longest`.
        longest: Positions that a piece with an image has at most.
    """
    assert image_length + 2 <= longest
    pieces: list[Piece] = []
    start, length, tokens, images = 0, 1, 0, 0
    texts = iter(text_lengths)
    for place, kind in enumerate(layout):
        own = image_length if kind == "i" else next(texts)
        size = own + (place == len(layout) - 1)
        begun = tokens or images
        if begun and length + size > longest:
            pieces.append(Piece(start, length, tokens, images, closes=False))
            start, length, tokens, images = start + length, 0, 0, 0
        length += size
        tokens += own if kind == "t" else 0
        images += kind == "i"
    pieces.append(Piece(start, length, tokens, images, closes=True))
    return pieces
