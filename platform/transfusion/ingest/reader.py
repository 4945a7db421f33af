"""Packed batches of a mixture: position in, batch out; nothing is remembered from one to the next.

What is drawn (the latent from its posterior, noise, timestep, the dropped caption) follows from the seed, the
epoch and the document alone: the same for any number of workers, and after any restart.
"""

import bisect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.autoencoder.statistics import FILE_NAME as STATISTICS
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.config import validate
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.errors import ArtifactError
from transfusion.ingest.ahead import Ahead
from transfusion.ingest.cache import Cache
from transfusion.ingest.images import Drops, Scaling, WantedImage, draw_images
from transfusion.ingest.pieces import cut
from transfusion.ingest.plan import Piece, PlanReader
from transfusion.ingest.shards import SourceReader, row_bytes
from transfusion.sequence.batch import ImageSlots, PackedBatch, assemble_slots
from transfusion.sequence.document import Document, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

log = logging.getLogger(__name__)

STEPS_AHEAD = 4
"""How many batches of a lane are begun before they are asked for: a slow read hides behind the others."""

THREADS = 4
"""That make batches. They work as fast as batches are taken, so more of them cost nothing; two feed any model
on one GPU, and the others wait for reads."""

_ENOUGH_LOADS = 200
"""Before it is said that the cache is too small."""


class MixtureReader:
    """Batches of a plan by step and lane."""

    def __init__(
        self,
        mixture: Artifact,
        *,
        seed: int,
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008 it is frozen
        cache_bytes: int = 2**30,
        threads: int = THREADS,
    ) -> None:
        """Opens a plan and what it refers to.

        Args:
            seed: Of the run: decides noise, timesteps, posterior samples and dropped captions. Validation takes
                the plan's seed instead, so that runs are compared on the same draws.
            objective: The range of timesteps, and that of images which later text sees.
            cache_bytes: How much of the shards is kept in memory, and half as much again for batches that wait.
                A lane comes back to the row groups of its shuffle window: with less than these take (8,192
                latents of 8x32x32 are 256 MiB) they are read over and over.
            threads: That read and draw.
        """
        self.mixture = read_mixture(mixture)
        self.layout = _layout(self.mixture.layout)
        self.special = SpecialIds.after(self.mixture.num_pieces, num_codes=self.mixture.num_codes)
        self.latent_shape = (
            self.mixture.latent_channels,
            self.mixture.latent_height,
            self.mixture.latent_width,
        )
        height, width = (self.layout.patches(side) for side in self.latent_shape[1:])
        self._patches = (height, width)
        self._seed, self._objective = seed, objective
        self.cache = Cache(cache_bytes)
        self._warned = False
        self.plan = PlanReader(mixture, self.mixture, self.cache)
        self._sources: list[SourceReader] = []
        self._first_shards: list[int] = []
        self._scaling: list[Scaling] = []
        self._has_conditions: list[bool] = []
        self._drops = Drops(self.mixture.caption_drop, **self.mixture.condition_drop)
        opened = [
            (
                mixture.input(source.tokens),
                mixture.input(source.latents) if source.latents else None,
            )
            for source in self.mixture.sources.values()
        ]
        # Windows lie in shards from all over: those that will not stay would be fetched whole for every window.
        by_range = not mixture.store.keeps(sum(map(row_bytes, opened)))
        for (name, source), (tokens, latents) in zip(
            self.mixture.sources.items(), opened, strict=True
        ):
            self._sources.append(
                SourceReader(
                    name,
                    tokens,
                    latents,
                    latent_shape=self.latent_shape,
                    cache=self.cache,
                    by_range=by_range,
                )
            )
            self._first_shards.append(source.first_shard)
            self._scaling.append(_scaling(latents, self.latent_shape))
            self._has_conditions.append(source.conditions == "earlier_images")
        self._ahead = Ahead(
            self._make,
            steps=self.steps,
            threads=threads,
            max_steps=STEPS_AHEAD,
            max_batches=max(1, cache_bytes // 2 // self.batch_bytes),
        )

    @property
    def lanes(self) -> int:
        """Micro-batches of a step."""
        return self.mixture.lanes

    @property
    def steps(self) -> int:
        """Steps of the plan."""
        return self.mixture.steps

    @property
    def sequences_per_micro_batch(self) -> int:
        """Sequences of a batch."""
        return self.mixture.sequences_per_micro_batch

    @property
    def num_validation(self) -> int:
        """Batches of held-out documents."""
        return self.mixture.validation_micro_batches

    @property
    def batch_bytes(self) -> int:
        """What a batch takes in memory, nearly: latents and noise, and four numbers a position."""
        positions = self.sequences_per_micro_batch * self.mixture.sequence_length
        latent_bytes = 4 * int(np.prod(self.latent_shape))
        return 2 * self.mixture.image_slots * latent_bytes + 4 * 8 * positions

    def micro_batch(self, step: int, lane: int) -> PackedBatch:
        """The batch of a lane at a step. The same lane's next ones are made meanwhile, in threads."""
        return self._ahead.take(step, lane)

    def zero_batch(self) -> PackedBatch:
        """A batch in which nothing counts: what a worker runs when it has one lane less than another."""
        empty: list[list[Document[int]]] = [[] for _ in range(self.sequences_per_micro_batch)]
        return self._assemble(
            empty, ImageSlots.empty(self.mixture.image_slots, self.latent_shape, used=0)
        )

    def validation(self, index: int) -> PackedBatch:
        """A batch of held-out documents: the same draws in every run, and no caption is dropped."""
        return self._batch(self.plan.validation(index), seed=self.mixture.seed, drops=Drops())

    def document_ids(self, step: int, lane: int) -> list[str]:
        """The documents of a batch as source/key, for naming it."""
        found = []
        names = list(self.mixture.sources)
        for piece in (piece for part in self.plan.sequences(step, lane) for piece in part):
            source, shard = self._locate(piece.shard)
            group, at = self._sources[source].tokens(shard, piece.row)
            found.append(f"{names[source]}/{group.keys[at]}")
        return found

    def _make(self, step: int, lane: int) -> PackedBatch:
        if self.cache.loads > _ENOUGH_LOADS and self.cache.reloads > self.cache.loads // 2:
            self._warn_of_reloads()
        sequences = self.plan.sequences(step, lane)
        return self._batch(sequences, seed=self._seed, drops=self._drops)

    def _warn_of_reloads(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "most of what is read was read shortly before: the shuffle windows of this worker's lanes do "
                "not fit the %d MiB that are kept; raise train.data_cache_gib in the profile, give the run more "
                "workers, which have fewer lanes each, or the mixture a smaller shuffle_window",
                self.cache.max_bytes // 2**20,
            )

    def _batch(
        self, sequences: Sequence[Sequence[Piece]], *, seed: int, drops: Drops
    ) -> PackedBatch:
        wanted: list[WantedImage] = []
        documents = [[self._document(piece, wanted) for piece in part] for part in sequences]
        slots = draw_images(
            wanted,
            count=self.mixture.image_slots,
            latent_shape=self.latent_shape,
            seed=seed,
            objective=self._objective,
            drops=drops,
        )
        return self._assemble(documents, slots)

    def _assemble(
        self, sequences: Sequence[Sequence[Document[int]]], slots: ImageSlots
    ) -> PackedBatch:
        return assemble_slots(
            sequences,
            slots,
            layout=self.layout,
            special=self.special,
            sequence_length=self.mixture.sequence_length,
            text_rows=self.mixture.text_rows,
            conditions=any(self._has_conditions),
        )

    def _locate(self, shard: int) -> tuple[int, int]:
        """The source of a shard, and the shard's number within it."""
        source = bisect.bisect_right(self._first_shards, shard) - 1
        return source, shard - self._first_shards[source]

    def _document(self, piece: Piece, wanted: list[WantedImage]) -> Document[int]:
        """A document whose images are places in `wanted`, to which they are added."""
        source, shard = self._locate(piece.shard)
        reader = self._sources[source]
        group, at = reader.tokens(shard, piece.row)
        segments, layout = group.segments(at), group.layouts[at]
        if "i" not in layout:
            return _text_piece(segments, piece.start, piece.length)
        if layout in ("ti", "it"):
            layout = "it" if piece.image_first else "ti"
        has_conditions, last_image = self._has_conditions[source], layout.count("i") - 1
        images = reader.images(shard)
        first_image, identity = int(images.first[piece.row]), int(images.identity[piece.row])
        num_patches = self._patches[0] * self._patches[1]
        found = cut(
            layout,
            segments,
            start=piece.start,
            length=piece.length,
            image_length=self.layout.image_length(num_patches),
            twin_length=self.layout.twin_length(num_patches),
            num_conditions=last_image if has_conditions else 0,
        )
        twins: list[WantedImage] = []
        spans: list[TextSpan | ImageSpan[int]] = []
        for place, part in enumerate(found.parts):
            if not isinstance(part, int):
                spans.append(TextSpan(part))
                continue
            copied = part in found.copied
            spans.append(ImageSpan(*self._patches, len(wanted), copied=copied))
            latents, row = reader.latents(shard, first_image + part)
            image = WantedImage(
                group=latents,
                row=row,
                scaling=self._scaling[source],
                counters=(piece.epoch, identity, part),
                sees_text=found.has_text(0, place),
                is_seen=not copied and found.has_text(place, len(found.parts)),
                is_condition=has_conditions and part < last_image,
                has_conditions=has_conditions and 0 < part == last_image,
            )
            wanted.append(image._replace(is_copy=True) if copied else image)
            if copied:
                twins.append(image)
        wanted += twins
        return Document(tuple(spans), opens=found.opens, closes=found.closes)


def _text_piece(segments: Sequence[np.ndarray], start: int, length: int) -> Document[int]:
    """Positions `start` to `start + length` of BOS, the text's ids, EOS."""
    ids = segments[0] if len(segments) == 1 else np.concatenate([*segments, np.zeros(0, np.int32)])
    end = start + length
    piece = ids[max(start - 1, 0) : min(end - 1, len(ids))]
    spans = (TextSpan(piece),) if len(piece) else ()
    return Document(spans, opens=start == 0, closes=end == len(ids) + 2)


def _layout(values: dict[str, Any]) -> SequenceLayout:
    layout, faults = validate(SequenceLayout, values, where="mixture.layout")
    if layout is None:
        raise ArtifactError("; ".join(faults))
    return layout


def _scaling(latents: Artifact | None, shape: tuple[int, int, int]) -> Scaling:
    """Shift and scale of the autoencoder that made the latents."""
    if latents is None:
        return Scaling(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    folder = latents.input("autoencoder").local(STATISTICS).parent
    found = LatentStatistics.read(folder, latent_channels=shape[0])
    shift, scale = (
        np.broadcast_to(np.array(values, np.float32)[:, None, None], shape).copy()
        for values in (found.shift, found.scale)
    )
    return Scaling(shift, scale)
