"""Where the batches of a shard come from: decoders of this actor, or an actor of their own.

Split in two, pixels pass from the decoding actor to its encoder as Ray objects, a micro-batch each, and nowhere
else. At most `BATCHES_AHEAD` of a shard are under way, of two shards: 25 MiB at 256 px and 32 images a batch.
"""

from collections.abc import Iterator
from typing import Any

from data_pipelines.decoders import running_decoders
from data_pipelines.encode_images.batches import Batch, micro_batches
from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.images import load_images
from data_pipelines.preparation import Preparation
from data_pipelines.sources.source import ShardDescriptor, open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import Reject
from transfusion.errors import ArtifactError
from transfusion.resources import PoolResources

BATCHES_AHEAD = 2
SHARDS_AT_ONCE = 2
"""While one shard encodes, the next one decodes its first batches."""

PLACED_WITHIN_S = 1800
"""An autoscaler may have to bring a node first."""


class Here:
    """Decodes in child processes of this one."""

    def __init__(self, listing: Artifact, config: EncodeImagesConfig, num_decoders: int) -> None:
        self._listing = open_listing(listing)
        self._preparation = Preparation(config.limits, config.sizes_px, config.jpeg_draft)
        self._config, self._num_decoders = config, num_decoders

    def batches(self, shard: ShardDescriptor) -> Iterator[Batch | Reject]:
        """The batches of a shard and what could not be decoded, in an order that depends on the shard alone."""
        images = load_images(
            self._listing.read(shard),
            preparation=self._preparation,
            decoders=running_decoders(self._num_decoders),
        )
        yield from micro_batches(images, self._config.micro_batch)


class Elsewhere:
    """Decodes in an actor that belongs to this process and ends with it."""

    def __init__(self, listing: Artifact, config: EncodeImagesConfig, num_cpus: float) -> None:
        import ray

        # It comes back when it dies; a shard that lost it fails its attempt and is tried again.
        self._actor: Any = (
            ray.remote(Here)
            .options(num_cpus=num_cpus, max_concurrency=SHARDS_AT_ONCE, max_restarts=-1)
            .remote(listing, config, max(1, int(num_cpus)))
        )
        # Ray Data does not count this actor: where encoders hold all CPUs it would be waited for without a word.
        ready, _ = ray.wait([self._actor.__ray_ready__.remote()], timeout=PLACED_WITHIN_S)
        if not ready:
            raise ArtifactError(
                f"no node has {num_cpus:g} CPUs for an actor that decodes: add CPU nodes, lower pool.decode_cpus "
                "or the number of actors, or set pool.decoding to fused"
            )

    def batches(self, shard: ShardDescriptor) -> Iterator[Batch | Reject]:
        """As those of `Here`."""
        import ray

        stream = self._actor.batches.options(
            num_returns="streaming", _generator_backpressure_num_objects=BATCHES_AHEAD
        ).remote(shard)
        for item in stream:
            yield ray.get(item)


def decoding(
    listing: Artifact, config: EncodeImagesConfig, resources: PoolResources
) -> Here | Elsewhere:
    """As the profile says; what comes out is the same."""
    if resources.decoding == "split":
        return Elsewhere(listing, config, resources.decode_cpus)
    return Here(listing, config, max(1, int(resources.cpus_per_actor)))
