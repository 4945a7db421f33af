"""What a plan came to: shares, padding and epochs, of the whole and of each phase, from what was packed."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from data_pipelines.mix.duplicates import SourceDocuments
from data_pipelines.mix.streams import Streams
from transfusion.artifacts.mixture import MixturePhase
from transfusion.sequence.ledger import Stretch
from transfusion.sequence.packing import PackedSteps
from transfusion.sequence.shape import Limits, Shape

WINDOW = 64
"""Sequences over which the ratio is looked at."""

_KINDS = ("positions", "caption_tokens", "prose_tokens", "patch_tokens", "images")
COPIES = "copy_tokens"
"""Of the twins, in plans with clean copies: their images are counted once, with the patches in their place."""


class Statistics:
    """Sums over the blocks of a plan; memory does not grow with its length."""

    def __init__(
        self, streams: Streams, shape: Shape, *, num_patches: int, clean_copies: bool = False
    ) -> None:
        self._kinds = (*_KINDS, COPIES) if clean_copies else _KINDS
        self._streams, self._shape, self._num_patches = streams, shape, num_patches
        self._starts = np.array([phase.first_step for phase in streams.phases])
        self._sums = [
            {name: dict.fromkeys(self._kinds, 0) for name in streams.sources}
            for _ in streams.phases
        ]
        self._largest_error = [0.0 for _ in streams.phases]
        self._weights = np.zeros(len(streams.sources))
        self._window = np.zeros((len(streams.sources), 0), np.int64)
        self._phase_of_window = 0
        self._num_sequences = 0
        self.num_steps = 0
        self.limits = Limits(0, 0)
        """The largest of any stretch: what the model's shapes are made for."""
        self.exhausted: dict[str, int] = {}
        """Sources that were, with the step."""

    def add(self, block: PackedSteps) -> None:
        """Counts a block."""
        per_step = self._shape.lanes * self._shape.sequences_per_micro_batch
        step_of = block.first_step + np.arange(len(block.counts)) // per_step
        phase_of = np.searchsorted(self._starts, step_of, side="right") - 1
        sequence = np.repeat(np.arange(len(block.counts)), block.counts)
        positions = np.zeros((len(self._streams.sources), len(block.counts)), np.int64)
        for i, stream in enumerate(self._streams.streams):
            mine = block.stream == i
            if not mine.any():
                continue
            positions[stream.source] += np.bincount(
                sequence[mine], weights=block.length[mine], minlength=len(block.counts)
            ).astype(np.int64)
            for phase in np.unique(phase_of).tolist():
                self._count(i, phase, block, mine & (phase_of[sequence] == phase))
        self._look_at_ratio(block.stretches, positions, phase_of)
        self._num_sequences += len(block.counts)
        self.num_steps += block.num_steps
        self.exhausted |= {self._streams.sources[s]: step for s, step in block.ended.items()}

    def _count(self, i: int, phase: int, block: PackedSteps, mine: np.ndarray) -> None:
        documents = self._streams.documents[i]
        length, index, start = block.length[mine], block.document[mine], block.start[mine]
        sums = self._sums[phase][self._streams.sources[self._streams.streams[i].source]]
        sums["positions"] += int(length.sum())
        if self._streams.streams[i].splittable:
            opens = (start == 0) & (documents.start[index] == 0)
            closes = documents.closes[index] & (start + length == documents.length[index])
            sums["prose_tokens"] += int((length - opens - closes).sum())
        else:
            images = int(documents.images[index].sum(dtype=np.int64))
            sums["caption_tokens"] += int(documents.text_tokens[index].sum(dtype=np.int64))
            sums["patch_tokens"] += images * self._num_patches
            sums["images"] += images
            if COPIES in sums:
                always = np.where(documents.is_pair, 0, documents.copied)[index]
                drawn = length - documents.length[index]
                sums[COPIES] += int(always.sum()) * self._num_patches + int(drawn.sum())

    def _look_at_ratio(
        self,
        stretches: Sequence[Stretch],
        positions: Int64[np.ndarray, "k s"],
        phase_of: Int64[np.ndarray, " s"],
    ) -> None:
        """The largest error in windows of sequences that were planned with the same weights."""
        edges = [stretch.first_sequence - self._num_sequences for stretch in stretches]
        for first, last in zip([0, *edges], [*edges, positions.shape[1]], strict=True):
            if first in edges:
                stretch = stretches[edges.index(first)]
                self.limits = self.limits.join(stretch.limits)
                self._weights[:] = 0
                for source, weight in stretch.weights.items():
                    self._weights[source] = weight
                self._window = self._window[:, :0]
            if first == last:
                continue
            seen = np.concatenate([self._window, positions[:, first:last]], axis=1)
            self._window = seen[:, -(WINDOW - 1) :]
            if seen.shape[1] >= WINDOW:
                sums = np.cumsum(np.pad(seen, ((0, 0), (1, 0))), axis=1)
                within = sums[:, WINDOW:] - sums[:, :-WINDOW]
                share = within / np.maximum(within.sum(axis=0), 1)
                error = float(np.abs(share - self._weights[:, None]).max())
                phase = int(phase_of[last - 1])
                self._largest_error[phase] = max(self._largest_error[phase], error)

    def metrics(self) -> dict[str, float]:
        """Shares of the sources, padding, use of the image slots, and how far the ratio strays."""
        sums = self._totals()
        filled = sum(values["positions"] for values in sums.values())
        images = sum(values["images"] for values in sums.values())
        images += sum(values.get(COPIES, 0) for values in sums.values()) // self._num_patches
        micro_batches = self._num_sequences // self._shape.sequences_per_micro_batch
        slots = micro_batches * self.limits.image_slots
        found = {
            "padding": 1 - filled / (self._num_sequences * self._shape.sequence_length),
            "image_slots_used": images / slots if slots else 1.0,
            f"largest_ratio_error_in_{WINDOW}": max(self._largest_error),
        }
        for name, values in sums.items():
            found[f"share.{name}"] = values["positions"] / max(filled, 1)
        for name, step in self.exhausted.items():
            found[f"exhausted_at_step.{name}"] = step
        return {name: round(value, 6) for name, value in found.items()}

    def per_source(self, sources: Mapping[str, SourceDocuments]) -> dict[str, dict[str, float]]:
        """Counts of each source; caption, prose and patch tokens apart; how often it was gone through."""
        return {
            name: {
                "documents": float(sources[name].num_documents),
                "held_out": float(sources[name].validation.num_documents),
                **{kind: float(value) for kind, value in values.items()},
                "epochs": round(values["positions"] / self._streams.positions[0][name], 4),
            }
            for name, values in self._totals().items()
        }

    def per_phase(self) -> list[MixturePhase]:
        """The same of each phase, with the shares that were to be and those that are."""
        found = []
        for number, phase in enumerate(self._streams.phases):
            if phase.first_step >= self.num_steps:
                break
            there = self._streams.positions[number]
            weights = dict.fromkeys(there, 0.0)
            for i, weight in enumerate(phase.weights):
                if weight:
                    weights[self._streams.sources[self._streams.streams[i].source]] += weight
            sums = self._sums[number]
            filled = max(sum(values["positions"] for values in sums.values()), 1)
            found.append(
                MixturePhase(
                    start_step=phase.first_step,
                    weights=weights,
                    largest_ratio_error=round(self._largest_error[number], 6),
                    statistics={
                        name: {
                            **{kind: float(value) for kind, value in sums[name].items()},
                            "share": round(sums[name]["positions"] / filled, 6),
                            "epochs": round(sums[name]["positions"] / there[name], 4),
                        }
                        for name in there
                    },
                )
            )
        return found

    def summary(self, metrics: Mapping[str, float]) -> str:
        """The line that people read."""
        shares = ", ".join(f"{n} {metrics[f'share.{n}']:.2%}" for n in self._streams.sources)
        ends = "".join(f"; {n} exhausted at step {step}" for n, step in self.exhausted.items())
        return (
            f"{self._num_sequences:,} sequences of {self._shape.sequence_length}: {shares}; "
            f"padding {metrics['padding']:.2%}; {self.limits.image_slots} image slots and "
            f"{self.limits.text_rows:,} text rows a micro-batch, {metrics['image_slots_used']:.1%} of the "
            f"slots used{ends}"
        )

    def _totals(self) -> dict[str, dict[str, int]]:
        return {
            name: {kind: sum(sums[name][kind] for sums in self._sums) for kind in self._kinds}
            for name in self._streams.sources
        }
