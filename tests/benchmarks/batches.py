"""Packed batches of made-up documents. Plain torch: also for a GPU machine that has no Ray and no pyarrow.

Axes: b = sequences, n = positions.
"""

from dataclasses import dataclass

import numpy as np

from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How sequences are filled: captioned images, then prose to the end."""

    sequences: int
    length: int
    caption_tokens: int = 9
    images: int = 8
    """In each sequence."""
    latent: tuple[int, int, int] = (8, 8, 8)
    patch_size: int = 2
    prose_tokens: int = 300
    """Of a document of prose; the last one is cut."""
    num_pieces: int = 1024

    @property
    def layout(self) -> SequenceLayout:
        """Of its images."""
        return SequenceLayout(patch_size=self.patch_size)

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return self.layout.num_patches(*self.latent[1:])


def make_batch(packing: Packing, *, seed: int = 0) -> PackedBatch:
    """A full batch: no padding, no empty image slot, no empty text row."""
    rng = np.random.default_rng(seed)
    sequences = [_sequence(packing, rng) for _ in range(packing.sequences)]

    def fit(text_rows: int) -> PackedBatch:
        return assemble(
            sequences,
            layout=packing.layout,
            special=SpecialIds.after(packing.num_pieces),
            sequence_length=packing.length,
            image_slots=packing.images * packing.sequences,
            text_rows=text_rows,
            latent_shape=packing.latent,
        )

    loose = fit(packing.sequences * packing.length)
    return fit(int(loose.text_weight.sum()))


def density(batch: PackedBatch) -> float:
    """Share of all pairs of positions that attention computes."""
    seen = float((batch.hi - batch.lo).sum())
    return seen / (batch.lo.shape[0] * batch.lo.shape[1] ** 2)


def _sequence(packing: Packing, rng: np.random.Generator) -> list[Document[ImageInput]]:
    documents: list[Document[ImageInput]] = []
    left = packing.length
    for _ in range(packing.images):
        caption = TextSpan(_ids(packing, rng, packing.caption_tokens))
        latent, noise = rng.standard_normal((2, *packing.latent), dtype=np.float32)
        image = ImageInput(latent=latent, noise=noise, timestep=int(rng.integers(1000)))
        height, width = (packing.layout.patches(side) for side in packing.latent[1:])
        document = Document((caption, ImageSpan(height, width, image)))
        left -= packing.layout.document_length(document)
        documents.append(document)
    if left < 0:
        raise ValueError(f"{packing.images} images do not fit {packing.length} positions")
    while left > 2:
        length = min(packing.prose_tokens, left - 2)
        if left - 2 - length in (1, 2):
            length = left - 2
        documents.append(Document((TextSpan(_ids(packing, rng, length)),)))
        left -= length + 2
    return documents


def _ids(packing: Packing, rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, packing.num_pieces, count, dtype=np.int32)


QUICKSTART = Packing(sequences=5, length=256, images=7)
"""The quickstart's micro-batch: 5 parts captioned images, 1 part prose."""
