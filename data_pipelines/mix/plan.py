"""Packs what takes part, turns what was packed into references, and stores them."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt64

from data_pipelines.mix.config import MixConfig
from data_pipelines.mix.statistics import Statistics
from data_pipelines.mix.streams import Streams, budgets
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.mixture import VALIDATION, References, block_name, sequences_table
from transfusion.artifacts.tables import store_table
from transfusion.errors import ArtifactError
from transfusion.sequence.ledger import Exhausted
from transfusion.sequence.packing import PackedSteps, pack
from transfusion.sequence.shape import Limits, Shape
from transfusion.stage import StageContext

SEQUENCES_PER_LANE = 2048
"""Of one block."""

SEQUENCES_PER_BLOCK = 2**18
"""Of all lanes, which are held while they are packed: more than 128 lanes have shorter blocks."""

SEQUENCES_PER_FILE = 2**15
"""Of some lanes: every worker reads the list of all files, of which 500,000 steps of 512 lanes have 8,000."""


def steps_per_block(shape: Shape) -> int:
    """Steps whose sequences are planned together."""
    per_lane = min(SEQUENCES_PER_LANE, SEQUENCES_PER_BLOCK // shape.lanes)
    return max(1, per_lane // shape.sequences_per_micro_batch)


def lanes_per_file(shape: Shape) -> int:
    """Lanes whose sequences of a block lie in one file."""
    per_lane = steps_per_block(shape) * shape.sequences_per_micro_batch
    return min(shape.lanes, max(1, SEQUENCES_PER_FILE // per_lane))


class Plan:
    """The files of a plan."""

    def __init__(self, config: MixConfig, context: StageContext, shape: Shape) -> None:
        self._config, self._context, self._shape = config, context, shape
        self.steps_per_block, self.lanes_per_file = steps_per_block(shape), lanes_per_file(shape)

    def training(self, streams: Streams, statistics: Statistics) -> Iterator[FileEntry]:
        """The blocks of every lane.

        Raises:
            ArtifactError: A source that must last does not, or all are exhausted, be it before the first step.
        """
        blocks = pack(
            streams.streams,
            self._shape,
            seed=self._config.seed,
            window=self._config.shuffle_window,
            num_steps=self._config.num_steps,
            steps_per_block=self.steps_per_block,
            phases=streams.phases,
            budgets=budgets(self._config),
        )
        with self._context.progress(total=self._config.num_steps, unit="steps") as progress:
            try:
                for number, block in enumerate(blocks):
                    statistics.add(block)
                    if not block.num_steps:
                        break
                    for first_lane, table in self._tables(block, streams, self._shape):
                        yield self._stored(block_name(first_lane, number), table)
                    progress.advance(block.num_steps)
            except Exhausted as exhausted:
                raise ArtifactError(self._explained(exhausted, streams)) from exhausted
            if not statistics.num_steps:
                raise ArtifactError(self._explained(Exhausted(None, 0), streams))

    def validation(self, streams: Streams, limits: Limits) -> FileEntry:
        """A few micro-batches of what is held out."""
        number = self._config.validation_micro_batches
        shape = Shape(**{**vars(self._shape), "lanes": 1})
        [block] = pack(
            streams.streams,
            shape,
            seed=self._config.seed,
            window=self._config.shuffle_window,
            num_steps=number,
            steps_per_block=number,
            phases=streams.phases,
            fixed_limits=limits,
        )
        [(_, table)] = self._tables(block, streams, shape)
        return self._stored(VALIDATION, table)

    def _explained(self, exhausted: Exhausted, streams: Streams) -> str:
        steps = f"at step {exhausted.step} of {self._config.num_steps}"
        if exhausted.source is None:
            return (
                f"{self._context.name}: all sources are exhausted {steps}: plan fewer steps, raise a source's "
                "max_epochs or max_tokens, or let one repeat"
            )
        name = streams.sources[exhausted.source]
        there = streams.positions[0].get(name, 0)
        return (
            f"{self._context.name}: sources.{name}: exhausted {steps} (an epoch has {there:,} positions), and "
            "when_exhausted is fail: raise max_epochs or max_tokens, lower its weight, or plan fewer steps"
        )

    def _tables(
        self, block: PackedSteps, streams: Streams, shape: Shape
    ) -> Iterator[tuple[int, pa.Table]]:
        """Of some lanes after the others, with the first of them: only one is in memory beside the block."""
        # Sequences lie in the order step, lane, slot.
        per_lane = shape.sequences_per_micro_batch
        lane_of = np.arange(len(block.counts)) // per_lane % shape.lanes
        by_lane = np.argsort(np.repeat(lane_of, block.counts), kind="stable")
        counts = block.counts[np.argsort(lane_of, kind="stable")].reshape(shape.lanes, -1)
        ends = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        for first, last in pairwise([*range(0, shape.lanes, self.lanes_per_file), shape.lanes]):
            table = sequences_table(
                self._words(block, by_lane[ends[first] : ends[last]], streams),
                counts=counts[first:last],
                first_lane=first,
                first_step=block.first_step,
                sequences_per_step=per_lane,
            )
            yield first, table

    def _words(
        self, block: PackedSteps, chosen: Int64[np.ndarray, " r"], streams: Streams
    ) -> UInt64[np.ndarray, "r 2"]:
        """Of some references of a block."""
        stream, document, start, length, epoch = (
            column[chosen]
            for column in (block.stream, block.document, block.start, block.length, block.epoch)
        )
        shard, row = np.empty_like(document), np.empty_like(document)
        image_first = np.zeros(len(chosen), bool)
        for i, documents in enumerate(streams.documents):
            mine = stream == i
            index = document[mine]
            shard[mine], row[mine] = documents.shard[index], documents.row[index]
            start[mine] += documents.start[index]
            drawn = streams.order.image_first(documents.identity[index], epoch[mine])
            image_first[mine] = documents.is_pair[index] & drawn
        return References(
            shard=shard, row=row, start=start, length=length, image_first=image_first, epoch=epoch
        ).to_words()

    def _stored(self, name: str, table: pa.Table) -> FileEntry:
        return store_table(self._context.store, f"{self._context.pool}/data", name, table)
