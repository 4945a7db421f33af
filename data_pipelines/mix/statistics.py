"""What a plan came to: shares, padding and epochs, from what was packed."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.mix.documents import Documents, SourceDocuments
from transfusion.sequence.packing import PackedSteps, Shape

WINDOW = 64
"""Sequences over which the ratio is looked at."""


class Statistics:
    """Sums over the blocks of a plan."""

    def __init__(
        self, names: Sequence[str], sources: Sequence[str], shape: Shape, *, num_patches: int
    ) -> None:
        """Takes the source of each stream, and the sources in their order."""
        self._names, self._sources, self._shape = names, list(sources), shape
        self._num_patches = num_patches
        self._sums = {name: dict.fromkeys(_KINDS, 0) for name in sources}
        self._num_sequences = self._padding = self._images = 0
        self._per_sequence: list[np.ndarray] = []

    def add(self, block: PackedSteps, documents: Sequence[Documents]) -> None:
        """Counts a block."""
        sequence = np.repeat(np.arange(len(block.counts)), block.counts)
        source_of = np.array([self._sources.index(name) for name in self._names])
        positions = np.zeros((len(self._sources), len(block.counts)), np.int64)
        for i, name in enumerate(self._names):
            mine = block.stream == i
            chosen, length = documents[i], block.length[mine]
            index = block.document[mine]
            images = chosen.images[index]
            sums = self._sums[name]
            sums["positions"] += int(length.sum())
            if images.any():
                sums["caption_tokens"] += int(chosen.text_tokens[index].sum(dtype=np.int64))
                sums["patch_tokens"] += int(images.sum(dtype=np.int64)) * self._num_patches
                sums["images"] += int(images.sum(dtype=np.int64))
            else:
                start = block.start[mine]
                specials = (start == 0).astype(int) + (start + length == chosen.length[index])
                sums["prose_tokens"] += int((length - specials).sum())
            positions[source_of[i]] += np.bincount(
                sequence[mine], weights=length, minlength=len(block.counts)
            ).astype(np.int64)
        self._num_sequences += len(block.counts)
        self._per_sequence.append(positions.astype(np.int32))

    def metrics(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Shares of the sources, padding, use of the image slots, and how far the ratio strays."""
        capacity = self._num_sequences * self._shape.sequence_length
        filled = sum(sums["positions"] for sums in self._sums.values())
        images = sum(sums["images"] for sums in self._sums.values())
        micro_batches = self._num_sequences // self._shape.sequences_per_micro_batch
        slots = micro_batches * self._shape.image_slots
        found = {
            "padding": 1 - filled / capacity,
            "image_slots_used": images / slots if slots else 1.0,
            f"largest_ratio_error_in_{WINDOW}": self._largest_error(weights),
        }
        for name, sums in self._sums.items():
            found[f"share.{name}"] = sums["positions"] / filled
        return {name: round(value, 6) for name, value in found.items()}

    def per_source(self, sources: Mapping[str, SourceDocuments]) -> dict[str, dict[str, float]]:
        """Counts of each source; caption, prose and patch tokens apart; how often it was gone through."""
        found = {}
        for name, sums in self._sums.items():
            source = sources[name]
            there = int(source.training.length.sum(dtype=np.int64))
            found[name] = {
                "documents": float(source.num_documents),
                "held_out": float(len(source.validation)),
                **{kind: float(value) for kind, value in sums.items()},
                "epochs": round(sums["positions"] / there, 4),
            }
        return found

    def summary(self, weights: Mapping[str, float], metrics: Mapping[str, float]) -> str:
        """The line that people read."""
        shares = ", ".join(f"{name} {metrics[f'share.{name}']:.2%}" for name in weights)
        return (
            f"{self._num_sequences:,} sequences of {self._shape.sequence_length}: {shares}; "
            f"padding {metrics['padding']:.2%}; {self._shape.image_slots} image slots and "
            f"{self._shape.text_rows:,} text rows a micro-batch, {metrics['image_slots_used']:.1%} of the "
            "slots used"
        )

    def _largest_error(self, weights: Mapping[str, float]) -> float:
        positions = np.concatenate(self._per_sequence, axis=1)
        sums = np.cumsum(np.pad(positions, ((0, 0), (1, 0))), axis=1, dtype=np.int64)
        window = min(WINDOW, positions.shape[1])
        within = sums[:, window:] - sums[:, :-window]
        share = within / np.maximum(within.sum(axis=0), 1)
        target = np.array([weights[name] for name in self._sources])[:, None]
        return float(np.abs(share - target).max())


_KINDS = ("positions", "caption_tokens", "prose_tokens", "patch_tokens", "images")
