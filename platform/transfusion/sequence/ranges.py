"""What each position sees: one contiguous range of keys, `lo[q] <= k < hi[q]`. Never an N x N matrix.

Caption and image of two patches, then a second document of two tokens, then padding:

              k: BOS cap BOI  p   p  EOI EOS BOS  x  PAD      lo  hi
    q: BOS        1   .   .   .   .   .   .   .   .   .        0   1
       cap        1   1   .   .   .   .   .   .   .   .        0   2
       BOI        1   1   1   .   .   .   .   .   .   .        0   3
       p          1   1   1   1   1   .   .   .   .   .        0   5
       p          1   1   1   1   1   .   .   .   .   .        0   5
       EOI        1   1   1   1   1   1   .   .   .   .        0   6
       EOS        1   1   1   1   1   1   1   .   .   .        0   7
       BOS        .   .   .   .   .   .   .   1   .   .        7   8
       x          .   .   .   .   .   .   .   1   1   .        7   9
       PAD        .   .   .   .   .   .   .   .   .   1        9  10

A dropped caption raises `lo` to BOI for BOI and for the patches: BOI's own state would leak the caption.
Axes: n = positions of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from transfusion.sequence.layout import ImageAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePlace:
    """Where an image lies in its sequence."""

    boi: int
    """Position of BOI; the patches follow it."""

    num_patches: int

    drop_caption: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRanges:
    """For each position the keys it sees, and its position within its document."""

    lo: Int[np.ndarray, " n"]
    hi: Int[np.ndarray, " n"]
    position_ids: Int[np.ndarray, " n"]


def key_ranges(
    *,
    document_lengths: Sequence[int],
    images: Sequence[ImagePlace],
    sequence_length: int,
    image_attention: ImageAttention = "bidirectional",
) -> KeyRanges:
    """Ranges of a sequence of documents that lie side by side, and of the padding behind them.

    A padding position sees itself: an empty range would give NaN.

    Raises:
        ValueError: The documents are longer than the sequence.
    """
    lengths = np.asarray(document_lengths, dtype=np.int64)
    used = int(lengths.sum())
    if used > sequence_length:
        raise ValueError(f"documents of {used} positions in a sequence of {sequence_length}")
    index = np.arange(sequence_length)
    lo, hi = index.copy(), index + 1
    lo[:used] = np.repeat(np.cumsum(lengths) - lengths, lengths)
    position_ids = index - lo
    for image in images:
        end = image.boi + 1 + image.num_patches
        if image_attention == "bidirectional":
            hi[image.boi + 1 : end] = end
        if image.drop_caption:
            lo[image.boi : end] = image.boi
    return KeyRanges(lo=lo, hi=hi, position_ids=position_ids)
