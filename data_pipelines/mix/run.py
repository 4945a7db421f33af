"""Plans a run from the lengths of its documents. Reads no token and no latent, and copies nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.mix.config import MixConfig
from data_pipelines.mix.documents import Documents, SourceDocuments, read_source
from data_pipelines.mix.statistics import Statistics
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.mixture import (
    VALIDATION,
    Mixture,
    MixtureSource,
    References,
    block_name,
    sequences_table,
)
from transfusion.artifacts.shards import REJECTS, count_reasons, rejects_table
from transfusion.artifacts.tables import store_table
from transfusion.errors import ArtifactError
from transfusion.sequence.draws import uniform
from transfusion.sequence.packing import PackedSteps, Shape, constants, pack
from transfusion.stage import Made, StageContext

SEQUENCES_PER_FILE = 2048
"""Of one lane: a file is read whole when its first step is reached."""

_ORDER_OF_PAIR = 3


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Shape of every latent of the mixture."""

    channels: int
    height: int
    width: int


def run(config: MixConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """The body of the stage."""
    num_pieces, latent = _constants_of_inputs(config, inputs)
    try:
        num_patches = config.layout.num_patches(latent.height, latent.width)
    except ValueError as error:
        raise ArtifactError(f"{context.name}: layout: {error}") from error
    sources = _read_sources(config, inputs, num_patches=num_patches)
    total = sum(source.weight for source in config.sources.values())
    weights = {name: source.weight / total for name, source in config.sources.items()}
    training = _Streams(
        {name: source.training for name, source in sources.items()}, weights, num_patches
    )
    for name, source in sources.items():
        if not len(source.training):
            raise ArtifactError(
                f"{context.name}: sources.{name}: none of its {source.num_documents} documents can be "
                f"trained on: {dict(source.filtered)}, {count_reasons(source.rejects)}"
            )
    image_slots, text_rows = constants(
        training.streams,
        sequence_length=config.sequence_length,
        sequences_per_micro_batch=config.sequences_per_micro_batch,
    )
    shape = Shape(
        sequence_length=config.sequence_length,
        sequences_per_micro_batch=config.sequences_per_micro_batch,
        lanes=config.lanes,
        image_slots=image_slots,
        text_rows=text_rows,
    )
    plan = _Plan(config, context, shape)
    statistics = Statistics(training.names, list(sources), shape, num_patches=num_patches)
    files = list(plan.training(training, statistics))
    validation_files, num_validation = plan.validation(sources, weights, num_patches)
    if not num_validation and config.validation_micro_batches:
        context.log.warning(
            "no document is held out, so there is no validation; raise held_out_fraction"
        )
    rejects = [reject for source in sources.values() for reject in source.rejects]
    files += validation_files
    files.append(
        store_table(context.store, f"{context.pool}/data", REJECTS, rejects_table(rejects))
    )
    metrics = statistics.metrics(weights)
    context.log.info(statistics.summary(weights, metrics))
    metadata = Mixture(
        sequence_length=config.sequence_length,
        sequences_per_micro_batch=config.sequences_per_micro_batch,
        lanes=config.lanes,
        steps=config.num_steps,
        steps_per_block=plan.steps_per_block,
        image_slots=image_slots,
        text_rows=text_rows,
        latent_channels=latent.channels,
        latent_height=latent.height,
        latent_width=latent.width,
        num_pieces=num_pieces,
        layout=config.layout.resolved(),
        caption_drop=config.caption_drop,
        seed=config.seed,
        validation_micro_batches=num_validation,
        sources=_described(config, sources, weights),
        statistics=statistics.per_source(sources),
    )
    return Made(
        files=files,
        outcomes=_outcomes(sources),
        metadata=metadata.model_dump(mode="json"),
        metrics=metrics,
    )


def _constants_of_inputs(config: MixConfig, inputs: Mapping[str, Artifact]) -> tuple[int, Latent]:
    """Pieces of the tokenizer and shape of the latents, which all sources must share."""
    pieces: dict[int, str] = {}
    latents: dict[Latent, str] = {}
    for name, source in config.sources.items():
        for field, role, kind in (
            ("tokens", source.tokens, "tokens"),
            ("latents", source.latents, "latents"),
        ):
            if role is not None and inputs[role].kind != kind:
                raise ArtifactError(
                    f"sources.{name}.{field}: the input {role!r} holds {inputs[role].kind}, not {kind}"
                )
        pieces.setdefault(inputs[source.tokens].metadata["num_pieces"], name)
        if source.latents is not None:
            values = inputs[source.latents].metadata
            latent = Latent(
                channels=values["latent_channels"],
                height=values["latent_height"],
                width=values["latent_width"],
            )
            latents.setdefault(latent, name)
    for what, found in (("tokenizers", pieces), ("latent shapes", latents)):
        if len(found) > 1:
            raise ArtifactError(
                f"sources: {', '.join(map(str, found.values()))} have different {what} "
                f"({', '.join(map(str, found))}); one model reads one kind"
            )
    # Text alone: a latent of one patch stands in, and no sequence holds any.
    patch = config.layout.patch_size
    return next(iter(pieces)), next(iter(latents), Latent(channels=1, height=patch, width=patch))


def _read_sources(
    config: MixConfig, inputs: Mapping[str, Artifact], *, num_patches: int
) -> dict[str, SourceDocuments]:
    takedown: set[str] = set()
    if config.takedown is not None:
        text = Path(config.takedown).expanduser().read_text("utf-8")
        takedown = {line.strip() for line in text.splitlines() if line.strip()}
    sources: dict[str, SourceDocuments] = {}
    for name, source in config.sources.items():
        sources[name] = read_source(
            name,
            source,
            config,
            inputs,
            num_patches=num_patches,
            first_shard=sum(read.num_shards for read in sources.values()),
            takedown=takedown,
        )
    return sources


class _Streams:
    """Each source as one or two streams: what holds images, and text alone, which may be cut."""

    def __init__(
        self, sources: Mapping[str, Documents], weights: Mapping[str, float], num_patches: int
    ) -> None:
        self.names: list[str] = []
        self.documents: list[Documents] = []
        self.streams = []
        for name, documents in sources.items():
            has_images = documents.images > 0
            positions = int(documents.length.sum(dtype=np.int64))
            for part in (documents.select(has_images), documents.select(~has_images)):
                if len(part):
                    share = int(part.length.sum(dtype=np.int64)) / positions
                    self.names.append(name)
                    self.documents.append(part)
                    self.streams.append(
                        part.stream(weight=weights[name] * share, num_patches=num_patches)
                    )


class _Plan:
    """Packs, turns what was packed into references, and stores them."""

    def __init__(self, config: MixConfig, context: StageContext, shape: Shape) -> None:
        self._config, self._context, self._shape = config, context, shape
        self.steps_per_block = max(1, SEQUENCES_PER_FILE // shape.sequences_per_micro_batch)

    def training(self, streams: _Streams, statistics: Statistics) -> Iterator[FileEntry]:
        """The blocks of every lane."""
        blocks = pack(
            streams.streams,
            self._shape,
            seed=self._config.seed,
            window=self._config.shuffle_window,
            num_steps=self._config.num_steps,
            steps_per_block=self.steps_per_block,
        )
        with self._context.progress(total=self._config.num_steps, unit="steps") as progress:
            for number, block in enumerate(blocks):
                statistics.add(block, streams.documents)
                words = self._words(block, streams)
                for lane in range(self._shape.lanes):
                    yield self._store(block_name(lane, number), block, words, lane)
                progress.advance(block.num_steps)

    def validation(
        self,
        sources: Mapping[str, SourceDocuments],
        weights: Mapping[str, float],
        num_patches: int,
    ) -> tuple[list[FileEntry], int]:
        """A few micro-batches of held-out documents, of the sources that have any."""
        held = {name: s.validation for name, s in sources.items() if len(s.validation)}
        number = self._config.validation_micro_batches
        if not held or not number:
            return [], 0
        total = sum(weights[name] for name in held)
        streams = _Streams(held, {name: weights[name] / total for name in held}, num_patches)
        [block] = pack(
            streams.streams,
            Shape(**{**vars(self._shape), "lanes": 1}),
            seed=self._config.seed,
            window=self._config.shuffle_window,
            num_steps=number,
            steps_per_block=number,
        )
        return [self._store(VALIDATION, block, self._words(block, streams), 0, lanes=1)], number

    def _words(self, block: PackedSteps, streams: _Streams) -> Any:
        shard = np.empty_like(block.document)
        row = np.empty_like(block.document)
        image_first = np.zeros(len(block.document), bool)
        for i, documents in enumerate(streams.documents):
            mine = block.stream == i
            chosen = block.document[mine]
            shard[mine], row[mine] = documents.shard[chosen], documents.row[chosen]
            drawn = uniform(
                self._config.seed,
                _ORDER_OF_PAIR,
                documents.identity[chosen],
                block.epoch[mine].astype(np.uint64),
            )
            image_first[mine] = documents.is_pair[chosen] & (drawn >= self._config.caption_first)
        return References(
            shard=shard,
            row=row,
            start=block.start,
            length=block.length,
            image_first=image_first,
            epoch=block.epoch,
        ).to_words()

    def _store(
        self, name: str, block: PackedSteps, words: Any, lane: int, *, lanes: int | None = None
    ) -> FileEntry:
        lanes = lanes or self._shape.lanes
        per_lane = self._shape.sequences_per_micro_batch
        # Sequences lie in the order step, lane, slot.
        lane_of = np.arange(len(block.counts)) // per_lane % lanes
        mine = np.repeat(lane_of == lane, block.counts)
        table = sequences_table(
            words[mine],
            counts=block.counts[lane_of == lane],
            first_step=block.first_step,
            sequences_per_step=per_lane,
        )
        context = self._context
        return store_table(
            context.store, f"{context.pool}/data", name, table, raw_columns=["references"]
        )


def _described(
    config: MixConfig, sources: Mapping[str, SourceDocuments], weights: Mapping[str, float]
) -> dict[str, MixtureSource]:
    first_shard = 0
    found = {}
    for name, source in config.sources.items():
        own = source.held_out_fraction
        found[name] = MixtureSource(
            tokens=source.tokens,
            latents=source.latents,
            first_shard=first_shard,
            weight=weights[name],
            held_out_fraction=config.held_out_fraction if own is None else own,
        )
        first_shard += sources[name].num_shards
    return found


def _outcomes(sources: Mapping[str, SourceDocuments]) -> Outcomes:
    outcomes = Outcomes()
    for source in sources.values():
        outcomes += Outcomes(
            input=source.num_documents,
            written=len(source.training),
            filtered=dict(source.filtered),
            rejected=count_reasons(source.rejects),
        )
    return outcomes
