"""A model inside a worker: answers the requests of a shard in batches.

A document's seeds follow from its key, and no row of a batch sees another. So it gets the same whatever shard it
is in, at whatever attempt and in whatever company, last bits of sums apart.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from data_pipelines.sampling import SamplesConfig
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.canonical import canonical_json
from transfusion.package.load import load_package
from transfusion.resources import PoolResources
from transfusion.sample.memory import keep_freed_memory
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sample, Sampler

T = TypeVar("T")

BATCHES_AT_ONCE = 4
"""So many batches of requests are given to the engine together: whoever ends makes room for the next of them. Of
a shard as many images are in memory."""


class ShardSampler:
    """Holds one model on its device."""

    def __init__(self, model: Artifact, config: SamplesConfig, resources: PoolResources) -> None:
        keep_freed_memory()
        package = load_package(
            model.folder(),
            weights=config.weights,
            device="cuda" if resources.gpus_per_actor else "cpu",
            precision=config.precision,
        )
        self.sampler = Sampler(package)
        self._batch_size = config.batch_size

    def answers(self, asked: Iterable[tuple[T, Request]]) -> Iterator[tuple[T, Sample]]:
        """What came of each request, in their order, beside what it was asked for."""
        for group in in_groups(asked, BATCHES_AT_ONCE * self._batch_size):
            requests = [request for _, request in group]
            samples = self.sampler.sample(requests, max_rows=self._batch_size)
            yield from zip((of for of, _ in group), samples, strict=True)


def seed_of(seed: int, key: str, number: int = 0) -> int:
    """The seed of a document's sample of that number: 63 bits."""
    data = canonical_json([seed, key, number]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1


def in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time; the last group may be smaller."""
    rest = iter(items)
    while group := list(itertools.islice(rest, size)):
        yield group
