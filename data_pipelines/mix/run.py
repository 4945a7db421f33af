"""Plans a run from the lengths of its documents. Reads no token and no latent, and copies nothing."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.mix.config import MixConfig, raw_input
from data_pipelines.mix.constants import (
    constants_of_inputs,
    patches_of_an_image,
    sources_of_codes,
)
from data_pipelines.mix.duplicates import SourceDocuments, settle
from data_pipelines.mix.plan import Plan
from data_pipelines.mix.reading import read_sources
from data_pipelines.mix.statistics import Statistics
from data_pipelines.mix.streams import Streams, training_streams, validation_streams
from data_pipelines.mix.takedown import Takedown
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry, Outcomes
from transfusion.artifacts.mixture import HELD_OUT, HELD_OUT_SCHEMA, Mixture, MixtureSource
from transfusion.artifacts.pool import mark_used
from transfusion.artifacts.shards import REJECTS
from transfusion.artifacts.tables import store_table
from transfusion.errors import ArtifactError
from transfusion.sequence.shape import Limits, Shape
from transfusion.stage import Made, StageContext


def run(config: MixConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """The body of the stage."""
    constants = constants_of_inputs(config, inputs)
    latent, whole = constants.latent, sources_of_codes(config, inputs)
    num_patches = patches_of_an_image(config, latent, context)
    context.check_raw(raw_input(config), what=f"takedown: {config.takedown}")
    takedown = Takedown.of_file(config.takedown)
    mark_used(context.store, context.pool)
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
        config,
        {name: source.training for name, source in sources.items()},
        num_patches,
        whole=whole,
    )
    shape = Shape(
        sequence_length=config.sequence_length,
        sequences_per_micro_batch=config.sequences_per_micro_batch,
        lanes=config.lanes,
    )
    plan = Plan(config, context, shape)
    statistics = Statistics(
        streams, shape, num_patches=num_patches, clean_copies=config.layout.clean_copies
    )
    files = list(plan.training(streams, statistics))
    held_out = validation_streams(
        config,
        {name: source.validation for name, source in sources.items() if len(source.validation)},
        num_patches,
        whole=whole,
    )
    validation = _validation(config, held_out, plan, statistics.limits, context)
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
        lanes_per_file=plan.lanes_per_file,
        image_slots=statistics.limits.image_slots,
        text_rows=statistics.limits.text_rows,
        latent_channels=latent.channels,
        latent_height=latent.height,
        latent_width=latent.width,
        num_pieces=constants.num_pieces,
        num_codes=constants.num_codes,
        layout=config.layout.resolved(),
        caption_drop=config.caption_drop,
        condition_drop=config.condition_drop.resolved(),
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


def _validation(
    config: MixConfig, held_out: Streams, plan: Plan, limits: Limits, context: StageContext
) -> list[FileEntry]:
    """A few micro-batches of held-out documents, of the sources that have any."""
    if not config.validation_micro_batches:
        return []
    if not held_out.documents:
        context.log.warning(
            "no document is held out, so there is no validation; raise held_out_fraction"
        )
        return []
    return [plan.validation(held_out, limits)]


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
            conditions=source.conditions,
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
