"""What each position sees: a range of keys, `lo[q] <= k < hi[q]`, and some a second. Never an N x N matrix.

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

An edit is an image, an instruction, and the image as it is afterwards, which may lose sight of either. What it
still sees is then a range of its own, `lo2[q] <= k < hi2[q]`, where it does not lie right before BOI; and this
sees nothing of what was lost, which would leak through its states:

    without the instruction                          without the image
              k: BOS BOI  p  EOI ins BOI  p                    k: BOS BOI  p  EOI ins BOI  p
    q: BOI        1   1   1   1   .   1   .           q: ins      .   .   .   .   1   .   .
       p          1   1   1   1   .   1   1              BOI      .   .   .   .   1   1   .
                                                         p        .   .   .   .   1   1   1

With clean copies an image that something behind it sees is clean in its place. Its noised twin stands behind the
document, at the positions of its patches, and sees what they see, and itself in their stead: its own block, and in
a second range what stands up to BOI. Nothing else sees a twin.

              k: BOS BOI  p   p  EOI cap EOS  p   p      lo  hi  lo2 hi2    position
    q: cap        1   1   1   1   1   1   .   .   .       0   6               5
       EOS        1   1   1   1   1   1   1   .   .       0   7               6
       p          1   1   .   .   .   .   .   1   1       7   9   0   2       2
       p          1   1   .   .   .   .   .   1   1       7   9   0   2       3
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
    """Positions between BOI and EOI: the time token, where there is one, is seen and sees like a patch."""

    keeps: tuple[int, int] | None = None
    """Of what stands before BOI it sees these positions alone, from and to (exclusive), and they none before them.
    An empty range, `(boi, boi)`, leaves it nothing: a dropped caption."""

    twin: int | None = None
    """First position of its noised twin, where it has one; its patches are clean then. What it keeps must reach up
    to BOI: with what lies between, a twin would see three ranges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRanges:
    """For each position the keys it sees, and its position within its document."""

    lo: Int[np.ndarray, " n"]
    hi: Int[np.ndarray, " n"]
    lo2: Int[np.ndarray, " n"]
    """Of the second range; equal to `hi2` and to `lo` where there is none."""
    hi2: Int[np.ndarray, " n"]
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
    lo2, hi2 = lo.copy(), lo.copy()
    for image in images:
        end = image.boi + 1 + image.num_patches
        if image_attention == "bidirectional":
            hi[image.boi + 1 : end] = end
        if image.keeps is not None:
            first, last = image.keeps
            lo[first:last] = np.maximum(lo[first:last], first)
            if last == image.boi:
                lo[image.boi : end] = first
            else:
                lo[image.boi : end] = image.boi
                lo2[image.boi : end], hi2[image.boi : end] = first, last
    for image in images:
        if image.twin is None:
            continue
        assert image.keeps is None or image.keeps[1] == image.boi
        twin = slice(image.twin, image.twin + image.num_patches)
        lo[twin] = twin.start
        if image_attention == "bidirectional":
            hi[twin] = twin.stop
        lo2[twin], hi2[twin] = lo[image.boi], image.boi + 1
        position_ids[twin] = position_ids[image.boi + 1 :][: image.num_patches]
    # Empty where it is not needed, and within the first range: a slice of keys that holds both is then no longer.
    alone = hi2 == lo2
    lo2[alone] = hi2[alone] = lo[alone]
    return KeyRanges(lo=lo, hi=hi, lo2=lo2, hi2=hi2, position_ids=position_ids)
