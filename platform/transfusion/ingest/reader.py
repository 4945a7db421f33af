"""Packed batches of a mixture: position in, batch out; nothing is remembered from one to the next.

What is drawn (the latent from its posterior, noise, timestep, the dropped caption) follows from the seed, the
epoch and the document alone: the same for any number of workers, and after any restart.
"""

import bisect
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt64

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import VALIDATION, References, block_name, read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.autoencoder.statistics import FILE_NAME as STATISTICS
from transfusion.config import validate
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.errors import ArtifactError
from transfusion.ingest.shards import Cache, SourceReader
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.draws import Draws
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

_IMAGE = 16
"""Purpose of the draws of an image; apart from those of the plan."""


class MixtureReader:
    """Batches of a plan by step and lane."""

    def __init__(
        self,
        mixture: Artifact,
        *,
        seed: int,
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008 it is frozen
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        """Opens a plan and what it refers to.

        Args:
            seed: Of the run: decides noise, timesteps, posterior samples and dropped captions. Validation takes
                the plan's seed instead, so that runs are compared on the same draws.
            objective: The range of timesteps, and that of images which later text sees.
            cache_bytes: How much of the shards is kept in memory.
        """
        self.mixture = read_mixture(mixture)
        self.layout = _layout(self.mixture.layout)
        self.special = SpecialIds.after(self.mixture.num_pieces)
        self.latent_shape = (
            self.mixture.latent_channels,
            self.mixture.latent_height,
            self.mixture.latent_width,
        )
        height, width = (self.layout.patches(side) for side in self.latent_shape[1:])
        self._patches = (height, width)
        self._artifact, self._seed = mixture, seed
        self._objective = objective
        self._ahead: dict[tuple[int, int], Future[PackedBatch]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._cache = Cache(cache_bytes)
        self._sources: list[SourceReader] = []
        self._first_shards: list[int] = []
        self._statistics: list[
            tuple[Float32[np.ndarray, "c 1 1"], Float32[np.ndarray, "c 1 1"]]
        ] = []
        for name, source in self.mixture.sources.items():
            latents = mixture.input(source.latents) if source.latents else None
            self._sources.append(
                SourceReader(
                    name,
                    mixture.input(source.tokens),
                    latents,
                    latent_shape=self.latent_shape,
                    cache=self._cache,
                )
            )
            self._first_shards.append(source.first_shard)
            self._statistics.append(_statistics(latents, self.latent_shape[0]))

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

    def micro_batch(self, step: int, lane: int) -> PackedBatch:
        """The batch of a lane at a step. The same lane's next one is made meanwhile, in a thread."""
        made = self._ahead.pop((step, lane), None)
        batch = self._make(step, lane) if made is None else made.result()
        for place in [place for place in self._ahead if place[0] not in (step, step + 1)]:
            self._ahead.pop(place).cancel()
        if step + 1 < self.steps:
            self._ahead[step + 1, lane] = self._thread.submit(self._make, step + 1, lane)
        return batch

    def zero_batch(self) -> PackedBatch:
        """A batch in which nothing counts: what a worker runs when it has one lane less than another."""
        return self._assemble([[] for _ in range(self.sequences_per_micro_batch)])

    def validation(self, index: int) -> PackedBatch:
        """A batch of held-out documents: the same draws in every run, and no caption is dropped."""
        return self._batch(self._validation(index), seed=self.mixture.seed, drop=0.0)

    def document_ids(self, step: int, lane: int) -> list[str]:
        """The documents of a batch as source/key, for naming it."""
        found = []
        for words in self._sequences(step, lane):
            for piece in _pieces(words):
                source, shard = self._locate(piece.shard)
                group, row = self._sources[source].tokens(shard, piece.row)
                found.append(f"{list(self.mixture.sources)[source]}/{group.keys[row]}")
        return found

    def _make(self, step: int, lane: int) -> PackedBatch:
        sequences = self._sequences(step, lane)
        return self._batch(sequences, seed=self._seed, drop=self.mixture.caption_drop)

    def _sequences(self, step: int, lane: int) -> list[UInt64[np.ndarray, "_ 2"]]:
        if not (0 <= step < self.steps and 0 <= lane < self.lanes):
            raise IndexError(
                f"step {step}, lane {lane}: the plan has {self.steps} steps of {self.lanes} lanes"
            )
        block, within = divmod(step, self.mixture.steps_per_block)
        first = within * self.sequences_per_micro_batch
        rows = self._rows(block_name(lane, block))
        return rows[first : first + self.sequences_per_micro_batch]

    def _validation(self, index: int) -> list[UInt64[np.ndarray, "_ 2"]]:
        if not 0 <= index < self.num_validation:
            raise IndexError(f"validation {index}: the plan has {self.num_validation}")
        first = index * self.sequences_per_micro_batch
        return self._rows(VALIDATION)[first : first + self.sequences_per_micro_batch]

    def _rows(self, name: str) -> list[UInt64[np.ndarray, "_ 2"]]:
        def load() -> tuple[list[UInt64[np.ndarray, "_ 2"]], int]:
            artifact = self._artifact
            table = load_table(artifact.store, artifact.entry(name), ["references"])
            values = table["references"].to_pylist()
            return [np.frombuffer(value, "<u8").reshape(-1, 2) for value in values], table.nbytes

        return list(self._cache.get(("plan", name), load))

    def _batch(
        self, sequences: Sequence[UInt64[np.ndarray, "_ 2"]], *, seed: int, drop: float
    ) -> PackedBatch:
        wanted: list[_WantedImage] = []
        documents = [
            [self._document(piece, wanted) for piece in _pieces(words)] for words in sequences
        ]
        images = self._images(wanted, seed=seed, drop=drop)
        return self._assemble(
            [[d.with_images(images.__getitem__) for d in sequence] for sequence in documents]
        )

    def _assemble(self, sequences: Sequence[Sequence[Document[ImageInput]]]) -> PackedBatch:
        return assemble(
            sequences,
            layout=self.layout,
            special=self.special,
            sequence_length=self.mixture.sequence_length,
            image_slots=self.mixture.image_slots,
            text_rows=self.mixture.text_rows,
            latent_shape=self.latent_shape,
        )

    def _locate(self, shard: int) -> tuple[int, int]:
        """The source of a shard, and the shard's number within it."""
        source = bisect.bisect_right(self._first_shards, shard) - 1
        return source, shard - self._first_shards[source]

    def _document(self, piece: "_Piece", wanted: "list[_WantedImage]") -> Document[int]:
        """A document whose images are places in `wanted`, to which they are added."""
        source, shard = self._locate(piece.shard)
        reader = self._sources[source]
        group, at = reader.tokens(shard, piece.row)
        segments, layout = group.segments(at), group.layouts[at]
        if "i" not in layout:
            return _text_piece(segments, piece.start, piece.length)
        if layout in ("ti", "it"):
            layout = "it" if piece.image_first else "ti"
        first_image = reader.first_image(shard, piece.row)
        identity = reader.identity(shard, piece.row)
        spans: list[TextSpan | ImageSpan[int]] = []
        texts = iter(segments)
        number = 0
        for place, kind in enumerate(layout):
            if kind == "t":
                spans.append(TextSpan(next(texts)))
                continue
            spans.append(ImageSpan(*self._patches, len(wanted)))
            wanted.append(
                _WantedImage(
                    source=source,
                    shard=shard,
                    row=first_image + number,
                    counters=(piece.epoch, identity, number),
                    sees_text="t" in layout[:place],
                    is_seen="t" in layout[place:],
                )
            )
            number += 1
        return Document(tuple(spans))

    def _images(
        self, wanted: "Sequence[_WantedImage]", *, seed: int, drop: float
    ) -> list[ImageInput]:
        """Reads latents and draws what is drawn: of each image by itself, the arithmetic for all at once."""
        shape = (len(wanted), *self.latent_shape)
        mean, std = np.empty(shape, np.float32), np.empty(shape, np.float32)
        sample, noise = np.empty(shape, np.float32), np.empty(shape, np.float32)
        shift = np.empty((len(wanted), self.latent_shape[0], 1, 1), np.float32)
        scale = np.empty_like(shift)
        draws = Draws(seed, _IMAGE)
        timesteps, dropped = [], []
        for i, image in enumerate(wanted):
            group, at = self._sources[image.source].latents(image.shard, image.row)
            mean[i], std[i] = group.mean[at], group.std[at]
            shift[i], scale[i] = self._statistics[image.source]
            drawn = draws.at(*image.counters)
            timestep, chance = drawn.random(2)
            limit = self._objective.noise_limit if image.is_seen else self._objective.num_timesteps
            timesteps.append(int(timestep * limit))
            dropped.append(image.sees_text and bool(chance < drop))
            drawn.standard_normal(out=sample[i], dtype=np.float32)
            drawn.standard_normal(out=noise[i], dtype=np.float32)
        latents = (mean + std * sample - shift) / scale
        return [
            ImageInput(
                latent=latents[i], noise=noise[i], timestep=timesteps[i], drop_caption=dropped[i]
            )
            for i in range(len(wanted))
        ]


class _Piece(NamedTuple):
    """One reference of a plan."""

    shard: int
    row: int
    start: int
    length: int
    image_first: bool
    epoch: int


class _WantedImage(NamedTuple):
    """An image of a batch that is being put together."""

    source: int
    shard: int
    row: int
    counters: tuple[int, int, int]
    """Epoch, document, image: what its draws depend on, beside the seed."""
    sees_text: bool
    is_seen: bool
    """By text that follows."""


def _text_piece(segments: Sequence[np.ndarray], start: int, length: int) -> Document[int]:
    """Positions `start` to `start + length` of BOS, the text's ids, EOS."""
    ids = segments[0] if len(segments) == 1 else np.concatenate([*segments, np.zeros(0, np.int32)])
    end = start + length
    piece = ids[max(start - 1, 0) : min(end - 1, len(ids))]
    spans = (TextSpan(piece),) if len(piece) else ()
    return Document(spans, opens=start == 0, closes=end == len(ids) + 2)


def _pieces(words: UInt64[np.ndarray, "_ 2"]) -> list[_Piece]:
    found = References.from_words(words)
    columns = (found.shard, found.row, found.start, found.length, found.image_first, found.epoch)
    return [_Piece(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _layout(values: dict[str, object]) -> SequenceLayout:
    layout, faults = validate(SequenceLayout, values, where="mixture.layout")
    if layout is None:
        raise ArtifactError("; ".join(faults))
    return layout


def _statistics(
    latents: Artifact | None, channels: int
) -> tuple[Float32[np.ndarray, "c 1 1"], Float32[np.ndarray, "c 1 1"]]:
    """Shift and scale of the autoencoder that made the latents."""
    from transfusion.autoencoder.statistics import LatentStatistics

    if latents is None:
        return np.zeros((channels, 1, 1), np.float32), np.ones((channels, 1, 1), np.float32)
    folder = latents.input("autoencoder").local(STATISTICS).parent
    found = LatentStatistics.read(folder, latent_channels=channels)
    return (
        np.array(found.shift, np.float32)[:, None, None],
        np.array(found.scale, np.float32)[:, None, None],
    )
