"""Reads the index tables of the sources: in threads of this process, or where there are many as a Ray Data job.

Of each shard only columns of numbers stay. What depends on other shards, duplicates, is decided when all have
been read.
"""

from collections.abc import Iterator, Mapping

from data_pipelines.mix.candidates import Candidates, joined
from data_pipelines.mix.choice import ShardChoice, ShardPlace
from data_pipelines.mix.config import MixConfig
from data_pipelines.mix.filters import check_columns
from data_pipelines.mix.side_by_side import in_threads
from data_pipelines.mix.takedown import Takedown
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import MAX_SHARDS
from transfusion.errors import ArtifactError
from transfusion.ingest.index import shard_entries
from transfusion.stage import StageContext

LEAST_SHARDS_ON_RAY = 1024
"""Ray costs 7 s before it is even: 3 to start, 4 until its workers are there. From then on two CPUs are as fast as
the threads (7 ms a shard of 10,000 documents, 3 ms of 500), which share one interpreter and cannot use more. With
many CPUs it is worth it from about 2,000 shards on a disk; on S3, where each waits for its objects, from some
hundreds on."""


def read_sources(
    config: MixConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    takedown: Takedown,
    num_patches: int,
) -> dict[str, Candidates]:
    """The documents of each source, their shards numbered through all of them.

    Raises:
        ArtifactError: A table is gone or altered, or a filter asks for a column that no shard of its source has.
    """
    choice = ShardChoice(
        config, inputs, takedown=takedown, store=context.store, num_patches=num_patches
    )
    places = _places(config, inputs)
    parts: dict[str, list[Candidates]] = {name: [] for name in config.sources}
    for name, part in _read(choice, places, context):
        parts[name].append(part)
    found = {}
    for name, source in config.sources.items():
        numbers = [place.shard for place in places if place.source == name]
        found[name] = joined(parts.pop(name), range(numbers[0], numbers[-1] + 1))
        check_columns(f"sources.{name}.filters", source.filters, found[name].columns)
        for number, phase in enumerate(config.phases):
            added = phase.filters.get(name, [])
            check_columns(f"phases[{number}].filters.{name}", added, found[name].columns)
    return found


def _read(
    choice: ShardChoice, places: list[ShardPlace], context: StageContext
) -> Iterator[tuple[str, Candidates]]:
    way = context.resources.mix.reading
    if way == "ray" or (way == "auto" and len(places) >= LEAST_SHARDS_ON_RAY):
        from data_pipelines.mix.reading_on_ray import read_on_ray

        context.start_ray()
        yield from read_on_ray(choice, places, context)
    else:
        yield from in_threads(lambda place: (place.source, choice.read(place)), places)


def _places(config: MixConfig, inputs: Mapping[str, Artifact]) -> list[ShardPlace]:
    found: list[ShardPlace] = []
    for name, source in config.sources.items():
        latents = inputs[source.latents] if source.latents else None
        entries = shard_entries(inputs[source.tokens], latents)
        if not entries:
            raise ArtifactError(f"sources.{name}: its inputs have no shard that could be read")
        found += [ShardPlace(name, len(found) + i, *pair) for i, pair in enumerate(entries)]
    if len(found) > MAX_SHARDS:
        raise ArtifactError(
            f"sources: they have {len(found):,} shards in all, and a plan tells at most {MAX_SHARDS:,} apart: "
            "put more rows into a shard, or leave a source out"
        )
    return found
