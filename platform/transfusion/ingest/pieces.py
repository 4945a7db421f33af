"""The part of a document that lies in one sequence: all of it, but for documents that were cut."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32


class Cut(NamedTuple):
    """What a piece of a document holds."""

    parts: list[Int32[np.ndarray, " _"] | int]
    """Ids of a text, or the number of an image among those of the document; in order."""
    opens: bool
    """BOS stands before the first."""
    closes: bool
    """EOS stands after the last."""
    copied: list[int]
    """Numbers of the images that something behind them in the piece is to see clean."""

    def has_text(self, first: int, last: int) -> bool:
        """Whether one of the parts `first` to `last` is text, and not an empty one."""
        return any(not isinstance(part, int) and len(part) > 0 for part in self.parts[first:last])


def cut(
    layout: str,
    segments: Sequence[Int32[np.ndarray, " _"]],
    *,
    start: int,
    length: int,
    image_length: int,
    twin_length: int = 0,
    num_conditions: int = 0,
) -> Cut:
    """What of BOS, the segments, EOS lies from `start` on and takes `length` positions.

    With clean copies an image takes `twin_length` more if text or an image stands behind it in the piece.

    Args:
        layout: 't' and 'i', the segments in order.
        segments: Ids of the texts.
        image_length: Positions of an image, BOI and EOI included.
        twin_length: Positions of its patches; 0 where none is copied.
        num_conditions: So many images, the first, are never copied.

    Raises:
        ValueError: An image lies only partly within.
    """
    parts: list[Int32[np.ndarray, " _"] | int] = []
    end = start + length
    texts = iter(segments)
    at, number = 1, 0
    last_image: int | None = None
    copied: list[int] = []
    for kind in layout:
        ids = next(texts) if kind == "t" else None
        if last_image is not None and at < end and (ids is None or len(ids)):
            # Of what the piece takes, its twin's positions are none of the document.
            end -= twin_length
            copied.append(last_image)
            last_image = None
        if ids is not None:
            inside = ids[max(start - at, 0) : max(end - at, 0)]
            if len(inside) or (not len(ids) and start <= at < end):
                parts.append(inside)
            at += len(ids)
            continue
        if start < at + image_length and at < end:
            if at < start or at + image_length > end:
                raise ValueError(
                    f"positions {start} to {end} cut image {number}, which is at {at} "
                    f"to {at + image_length}"
                )
            parts.append(number)
            last_image = number if twin_length and number >= num_conditions else None
        at += image_length
        number += 1
    return Cut(parts, opens=start == 0, closes=end == at + 1, copied=copied)
