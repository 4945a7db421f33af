"""Constants of a plan, and how many images and text targets a micro-batch may hold, so that shapes are static."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transfusion.sequence.order import Stream


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Constants of a plan."""

    sequence_length: int
    sequences_per_micro_batch: int
    lanes: int


class Limits(NamedTuple):
    """Images, and text targets, of a micro-batch at most."""

    image_slots: int
    text_rows: int

    def join(self, other: "Limits") -> "Limits":
        """What holds either."""
        return Limits(*map(max, self, other))


class Figures(NamedTuple):
    """What limits are computed from, of one stream: its sums, so that other weights cost nothing."""

    mean_length: float
    mean_images: float
    most_images: int
    most_targets: int
    images_per_position: float
    images_spread: float
    """Variance of a document's images about what its length makes expected, over its mean length."""
    targets_per_position: float
    targets_spread: float
    splittable: bool

    @classmethod
    def of(cls, stream: Stream) -> "Figures":
        """Of the documents of a stream."""
        positions, count = stream.positions, len(stream.lengths)
        mean_length = positions / count
        outcomes = [outcome for outcome in stream.outcomes if outcome[0] > 0]
        rates, spreads = [], []
        for values in (
            [(share, lengths, images) for share, lengths, images in outcomes],
            [(share, lengths, stream.targets) for share, lengths, _ in outcomes],
        ):
            rate = sum(share * float(v.sum(dtype=np.int64)) for share, _, v in values) / positions
            spread = 0.0
            for share, lengths, v in values:
                residual = v - np.float32(rate) * lengths
                spread += share * float(np.mean(np.square(residual), dtype=np.float64))
            rates.append(rate)
            spreads.append(spread / mean_length)
        return cls(
            mean_length=mean_length,
            mean_images=sum(share * float(images.mean()) for share, _, images in outcomes),
            most_images=max(int(images.max()) for _, _, images in outcomes),
            most_targets=int(stream.targets.max()),
            images_per_position=rates[0],
            images_spread=spreads[0],
            targets_per_position=rates[1],
            targets_spread=spreads[1],
            splittable=stream.splittable,
        )


def limits(figures: Sequence[Figures], weights: Sequence[float], shape: Shape) -> Limits:
    """Limits near the means, from the documents and their weights alone.

    Every slot that stays empty costs the model as much as an image. What does not fit is planned later, and
    the ledger makes up for it; so the slack is one standard deviation where text can fill the place, and three
    where the place would stay empty. Any one document fits an empty micro-batch.

    Args:
        weights: Of each stream; 0 leaves it out.
    """
    capacity = shape.sequence_length * shape.sequences_per_micro_batch
    there = [(f, weight * capacity) for f, weight in zip(figures, weights, strict=True) if weight]
    spread = 1.0 if any(f.splittable for f, _ in there) else 3.0
    images = sum(share * f.images_per_position for f, share in there)
    rows = sum(share * f.targets_per_position for f, share in there)
    rows += shape.sequences_per_micro_batch
    if images > 0:
        images += sum(
            spread * math.sqrt(share * f.images_spread) + f.mean_images for f, share in there
        )
    whole = [(f, share) for f, share in there if not f.splittable]
    # A piece of text has a target at every position but the last, whatever the whole had.
    rows += sum(
        spread * math.sqrt(share * f.targets_spread) + 2 * f.mean_length for f, share in whole
    )
    images = max([images, *(float(f.most_images) for f, _ in whole)])
    rows = max([rows, *(float(f.most_targets) for f, _ in whole)])
    return Limits(math.ceil(images), min(-(-math.ceil(rows) // 8) * 8, capacity))
