"""Held-out text in bits per byte, of the model and of a unigram model of the same training text.

Both count every token of a document and the EOS behind it, over the document's bytes in UTF-8, so that they can be
compared with each other and across tokenizers.
Axes: r = text rows, v = vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, TextSpan


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """The beginning of a document."""

    ids: Int32[np.ndarray, " n"]
    num_bytes: int
    """Of exactly these tokens."""
    whole: bool
    """Nothing was cut, so EOS is counted."""


@dataclass(frozen=True, slots=True)
class _Window:
    ids: Int32[np.ndarray, " n"]
    opens: bool
    closes: bool
    num_counted: int
    """Targets, from the end, that no window before it counted."""


def windows(text: HeldOutText, sequence_length: int) -> list[_Window]:
    """A document in windows that overlap by half: each target is counted once, with half a window before it."""
    ids, room = text.ids, sequence_length - 1
    if len(ids) + 1 + int(text.whole) <= sequence_length:
        return [_Window(ids, opens=True, closes=text.whole, num_counted=len(ids) + int(text.whole))]
    found = [_Window(ids[:room], opens=True, closes=False, num_counted=room)]
    done = room
    while done < len(ids) + int(text.whole):
        start = done - sequence_length // 2
        end = min(start + room, len(ids))
        closes = text.whole and end == len(ids)
        found.append(_Window(ids[start:end], False, closes, num_counted=end - done + int(closes)))
        done = end + int(closes)
    return found


@torch.inference_mode()
def bits_per_byte(
    model: TransfusionModel,
    texts: Sequence[HeldOutText],
    *,
    config: PackageConfig,
    batch_size: int,
) -> float:
    """Bits of all texts over their bytes."""
    every = [one for text in texts for one in windows(text, config.sequence_length)]
    every.sort(key=lambda one: -len(one.ids))
    nats = 0.0
    for start in range(0, len(every), batch_size):
        nats += _nats(model, every[start : start + batch_size], config)
    return nats / math.log(2) / sum(text.num_bytes for text in texts)


def _nats(model: TransfusionModel, batch: Sequence[_Window], config: PackageConfig) -> float:
    length = max(len(one.ids) for one in batch) + 2
    documents: list[list[Document[ImageInput]]] = [
        [Document((TextSpan(one.ids),), opens=one.opens, closes=one.closes)] for one in batch
    ]
    packed = assemble(
        documents,
        layout=config.layout,
        special=config.special,
        sequence_length=length,
        image_slots=1,
        text_rows=len(batch) * length,
        latent_shape=config.latent_shape,
    ).to(next(model.parameters()).device)
    losses = F.cross_entropy(
        model(packed, packed.latents).logits.float(), packed.text_targets, reduction="none"
    )
    return float((losses.double() * _counted(packed.text_rows, batch, length)).sum())


def _counted(rows: Tensor, batch: Sequence[_Window], length: int) -> Float[Tensor, " r"]:
    """1 at the rows that are the last `num_counted` targets of their window."""
    sizes = [len(one.ids) + int(one.opens) + int(one.closes) for one in batch]
    weights = np.zeros(len(batch) * length, np.float64)
    for index, (one, size) in enumerate(zip(batch, sizes, strict=True)):
        # A position's target is the token behind it: the last position has none.
        last = index * length + size - 1
        weights[last - one.num_counted : last] = 1.0
    found = torch.from_numpy(weights).to(rows.device)[rows]
    # Unused rows repeat row 0: only the first of each counts.
    seen = torch.arange(len(rows), device=rows.device) < sum(size - 1 for size in sizes)
    return found * seen


class Unigram:
    """Add-one smoothed frequencies of tokens and of EOS."""

    def __init__(self, num_pieces: int) -> None:
        self.counts = np.zeros(num_pieces + 1, np.int64)

    def learn(self, ids: Int32[np.ndarray, " n"]) -> None:
        """Counts one document and its end."""
        self.counts[:-1] += np.bincount(ids, minlength=len(self.counts) - 1)
        self.counts[-1] += 1

    def bits_per_byte(self, texts: Iterable[HeldOutText]) -> float:
        """Bits of the texts over their bytes."""
        smooth = self.counts + 1
        bits = np.log2(smooth.sum()) - np.log2(smooth)
        total, num_bytes = 0.0, 0
        for text in texts:
            total += float(bits[text.ids].sum()) + (float(bits[-1]) if text.whole else 0.0)
            num_bytes += text.num_bytes
        return total / num_bytes
