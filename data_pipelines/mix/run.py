"""Plans a run from the lengths of its documents. Reads no token and no latent, and copies nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.mix.config import MixConfig
from data_pipelines.mix.duplicates import SourceDocuments, settle
from data_pipelines.mix.plan import Plan
from data_pipelines.mix.reading import read_sources
from data_pipelines.mix.statistics import Statistics
from data_pipelines.mix.streams import training_streams, validation_streams
from data_pipelines.mix.takedown import Takedown
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.mixture import HELD_OUT, HELD_OUT_SCHEMA, Mixture, MixtureSource
from transfusion.artifacts.shards import REJECTS
from transfusion.artifacts.tables import store_table
from transfusion.errors import ArtifactError
from transfusion.sequence.shape import Limits, Shape
from transfusion.stage import Made, StageContext


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Shape of every latent of the mixture."""

    channels: int
    height: int
    width: int


def run(config: MixConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """The body of the stage."""
    num_pieces, latent = _constants_of_inputs(config, inputs)
    num_patches = _num_patches(config, latent, context)
    takedown = Takedown.of_file(config.takedown)
    candidates = read_sources(config, inputs, context, takedown=takedown, num_patches=num_patches)
    found = np.concatenate([part.takedown_found for part in candidates.values()])
    taken_down = takedown.told(found)
    if taken_down is not None and taken_down.not_found:
        context.log.warning(
            "takedown: %d of %d keys name no document of the sources, such as %s",
            taken_down.not_found,
            taken_down.listed,
            ", ".join(taken_down.first_not_found),
        )
    sources = settle(
        candidates,
        deduplicate=config.deduplicate,
        near_bits=config.near_bits,
    )
    for name, source in sources.items():
        if not len(source.training):
            raise ArtifactError(
                f"{context.name}: sources.{name}: none of its {source.num_documents} documents can be "
                f"trained on: {dict(source.filtered)}, {_reasons(source.rejects)}"
            )
    for phase in config.phases:
        if phase.start_step >= config.num_steps:
            context.log.warning(
                "the phase from step %d is not reached: num_steps is %d",
                phase.start_step,
                config.num_steps,
            )
    streams = training_streams(
        config, {name: source.training for name, source in sources.items()}, num_patches
    )
    shape = Shape(
        sequence_length=config.sequence_length,
        sequences_per_micro_batch=config.sequences_per_micro_batch,
        lanes=config.lanes,
    )
    plan = Plan(config, context, shape)
    statistics = Statistics(streams, shape, num_patches=num_patches)
    files = list(plan.training(streams, statistics))
    validation = _validation(config, sources, plan, statistics.limits, num_patches, context)
    files += validation
    files.append(
        store_table(context.store, f"{context.pool}/data", HELD_OUT, _held_out_table(sources))
    )
    rejects = pa.concat_tables([source.rejects for source in sources.values()]).sort_by("key")
    files.append(store_table(context.store, f"{context.pool}/data", REJECTS, rejects))
    metrics = statistics.metrics()
    context.log.info(statistics.summary(metrics))
    metadata = Mixture(
        sequence_length=config.sequence_length,
        sequences_per_micro_batch=config.sequences_per_micro_batch,
        lanes=config.lanes,
        steps=statistics.num_steps,
        steps_per_block=plan.steps_per_block,
        image_slots=statistics.limits.image_slots,
        text_rows=statistics.limits.text_rows,
        latent_channels=latent.channels,
        latent_height=latent.height,
        latent_width=latent.width,
        num_pieces=num_pieces,
        layout=config.layout.resolved(),
        caption_drop=config.caption_drop,
        seed=config.seed,
        validation_micro_batches=config.validation_micro_batches if validation else 0,
        sources=_described(config, sources),
        statistics=statistics.per_source(sources),
        phases=statistics.per_phase(),
        takedown=taken_down,
    )
    return Made(
        files=files,
        outcomes=_outcomes(sources),
        metadata=metadata.model_dump(mode="json"),
        metrics=metrics,
    )


def _constants_of_inputs(config: MixConfig, inputs: Mapping[str, Artifact]) -> tuple[int, Latent]:
    """Pieces of the tokenizer and shape of the latents, which all sources must share."""
    pieces: dict[tuple[int, str | None], str] = {}
    latents: dict[tuple[Latent, str | None], str] = {}
    for name, source in config.sources.items():
        for field, role, kind in (
            ("tokens", source.tokens, "tokens"),
            ("latents", source.latents, "latents"),
        ):
            if role is not None and inputs[role].kind != kind:
                raise ArtifactError(
                    f"sources.{name}.{field}: the input {role!r} holds {inputs[role].kind}, not {kind}"
                )
        tokens = inputs[source.tokens]
        tokenizer = (
            tokens.input("tokenizer").manifest.digest
            if "tokenizer" in tokens.manifest.inputs
            else None
        )
        pieces.setdefault((tokens.metadata["num_pieces"], tokenizer), name)
        if source.latents is not None:
            made = inputs[source.latents]
            latents.setdefault((_latent(name, made), made.metadata.get("autoencoder")), name)
    for what, found in (("tokenizers", pieces), ("autoencoders or latent shapes", latents)):
        if len(found) > 1:
            raise ArtifactError(
                f"sources: {', '.join(found.values())} have different {what} "
                f"({', '.join(f'{kind}, digest {digest}' for kind, digest in found)}); one model reads one kind"
            )
    # Text alone: a latent of one patch stands in, and no sequence holds any.
    patch = config.layout.patch_size
    (num_pieces, _), *_ = pieces
    latent = next((latent for latent, _ in latents), Latent(channels=1, height=patch, width=patch))
    return num_pieces, latent


def _latent(name: str, artifact: Artifact) -> Latent:
    values = artifact.metadata
    if values.get("latent_height") is None or values.get("latent_width") is None:
        raise ArtifactError(
            f"sources.{name}.latents: these latents have several shapes (aspect buckets), and a sequence is "
            "planned for one; encode them without buckets"
        )
    return Latent(
        channels=values["latent_channels"],
        height=values["latent_height"],
        width=values["latent_width"],
    )


def _num_patches(config: MixConfig, latent: Latent, context: StageContext) -> int:
    try:
        num_patches = config.layout.num_patches(latent.height, latent.width)
    except ValueError as error:
        raise ArtifactError(f"{context.name}: layout: {error}") from error
    has_images = any(source.latents for source in config.sources.values())
    least = config.layout.image_length(num_patches) + 2
    if has_images and least > config.sequence_length:
        raise ArtifactError(
            f"{context.name}: sequence_length is {config.sequence_length}, and an image alone takes {least} "
            "positions: raise sequence_length or layout.patch_size"
        )
    return num_patches


def _validation(
    config: MixConfig,
    sources: Mapping[str, SourceDocuments],
    plan: Plan,
    limits: Limits,
    num_patches: int,
    context: StageContext,
) -> list[FileEntry]:
    """A few micro-batches of held-out documents, of the sources that have any."""
    held = {name: source.validation for name, source in sources.items() if len(source.validation)}
    if not config.validation_micro_batches:
        return []
    if not held:
        context.log.warning(
            "no document is held out, so there is no validation; raise held_out_fraction"
        )
        return []
    return [plan.validation(validation_streams(config, held, num_patches), limits)]


def _held_out_table(sources: Mapping[str, SourceDocuments]) -> pa.Table:
    """A row for each document that is left of those held out, by source, shard and row."""
    columns: list[list[np.ndarray]] = []
    for number, source in enumerate(sources.values()):
        documents = source.validation
        whole = documents.start == 0
        numbers = np.full(documents.num_documents, number, np.int32)
        columns.append([numbers, documents.shard[whole], documents.row[whole]])
    arrays = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    return pa.table(arrays, schema=HELD_OUT_SCHEMA)


def _described(
    config: MixConfig, sources: Mapping[str, SourceDocuments]
) -> dict[str, MixtureSource]:
    total = sum(source.weight for source in config.sources.values())
    first_shard = 0
    found = {}
    for name, source in config.sources.items():
        own = source.held_out_fraction
        found[name] = MixtureSource(
            tokens=source.tokens,
            latents=source.latents,
            first_shard=first_shard,
            weight=source.weight / total,
            held_out_fraction=config.held_out_fraction if own is None else own,
        )
        first_shard += sources[name].num_shards
    return found


def _outcomes(sources: Mapping[str, SourceDocuments]) -> Outcomes:
    outcomes = Outcomes()
    for source in sources.values():
        outcomes += Outcomes(
            input=source.num_documents,
            written=source.training.num_documents,
            filtered=dict(source.filtered),
            rejected=_reasons(source.rejects),
        )
    return outcomes


def _reasons(rejects: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(rejects["reason"].combine_chunks())
    return dict(sorted((row["values"], row["counts"]) for row in counted.to_pylist()))
