"""The worker that encodes shards: decoding ahead of the encoder, writing behind it.

Of a shard there are in memory: two micro-batches of pixels before the encoder and two of latents behind it,
what `load_images` holds ahead, and the latents that are done (16 KiB an image of 256 px). While one
shard encodes, the next one decodes its first batches and the last one is written.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from data_pipelines.ahead import Ahead
from data_pipelines.encode_images.batches import BatchRow
from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.encode_images.decoding import BATCHES_AHEAD, SHARDS_AT_ONCE, decoding
from data_pipelines.encode_images.encoder import Encoded, Encoder
from data_pipelines.shards import Measured, ShardTask
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_INDEX, LATENTS_RAW, LatentRow, latents_table
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.resources import PoolResources
from transfusion.storage.store import Store

BATCHES_BEHIND = 2


class Staged(NamedTuple):
    """A batch where the encoder can take it."""

    rows: list[BatchRow]
    images: UInt8[Tensor, "b h w 3"]


class EncodeShard:
    """Holds one encoder, and what decodes for it."""

    shards_at_once = SHARDS_AT_ONCE

    def __init__(
        self,
        listing: Artifact,
        autoencoder: Artifact,
        config: EncodeImagesConfig,
        *,
        store: Store,
        pool: str,
        resources: PoolResources,
    ) -> None:
        self._decoding = decoding(listing, config, resources)
        self._encoder = Encoder(
            autoencoder,
            config,
            device="cuda" if resources.gpus_per_actor else "cpu",
            compiled=resources.compile_encoder,
        )
        self._pool = ShardPool(store, pool)
        self._turn = threading.Lock()
        self._turn_ended: float | None = None
        self._finisher = ThreadPoolExecutor(1)

    def make(self, task: ShardTask) -> Measured:
        """Columns out: those of `LATENTS_SCHEMA`."""
        began = time.perf_counter()
        with Ahead(self._decoded(task), BATCHES_AHEAD) as batches, self._turn:
            done = self._encode(batches)
            ended = time.perf_counter()
            span_s = ended - (self._turn_ended or began)
            self._turn_ended = ended
        table = latents_table(done.latents)
        record = self._pool.commit(
            task.key,
            {ROWS: table, INDEX: table.select(LATENTS_INDEX), REJECTS: rejects_table(done.rejects)},
            outcomes=Outcomes(
                input=len(done.latents) + len(done.rejects),
                written=len(done.latents),
                rejected=count_reasons(done.rejects),
            ),
            raw_columns=LATENTS_RAW,
            metadata={"notes": dict(sorted(done.notes.items()))} if done.notes else {},
        )
        return Measured(record, busy_s=done.busy_s, span_s=span_s)

    def _decoded(self, task: ShardTask) -> Iterator[Staged | Reject]:
        for batch in self._decoding.batches(task.descriptor):
            if isinstance(batch, Reject):
                yield batch
            else:
                yield Staged(batch.rows, self._encoder.staged(batch.pixels))

    def _encode(self, batches: Iterable[Staged | Reject]) -> "_Done":
        done = _Done()
        unfinished: deque[Future[None]] = deque()
        for batch in batches:
            if isinstance(batch, Reject):
                done.rejects.append(batch)
                continue
            encoded = self._encoder.encode(batch.images)
            unfinished.append(self._finisher.submit(done.add, batch.rows, encoded))
            if len(unfinished) > BATCHES_BEHIND:
                unfinished.popleft().result()
        while unfinished:
            unfinished.popleft().result()
        return done


class _Done:
    """What there is of a shard so far."""

    def __init__(self) -> None:
        self.latents: list[LatentRow] = []
        self.rejects: list[Reject] = []
        self.notes: Counter[str] = Counter()
        self.busy_s = 0.0

    def add(self, rows: Sequence[BatchRow], encoded: Encoded) -> None:
        """Adds a batch, in a thread that is not the encoder's."""
        means, stds = encoded.halves()
        self.busy_s += encoded.seconds()
        for row, mean, std in zip(rows, means, stds, strict=False):
            facts = row.facts
            self.notes.update(facts.notes)
            self.latents.append(
                LatentRow(
                    key=row.key,
                    image_index=row.image_index,
                    mean=mean,
                    std=std,
                    original_height=facts.original_height,
                    original_width=facts.original_width,
                    sha256=facts.sha256,
                    phash=facts.phash,
                )
            )
