"""Decodes some images of a listing, evenly from its shards."""

import functools
import itertools
from collections.abc import Mapping

from data_pipelines.decoders import running_decoders
from data_pipelines.documents import Text
from data_pipelines.images import LoadedImage, load_images
from data_pipelines.pixels.config import PixelsConfig
from data_pipelines.preparation import Facts, Preparation, count_notes
from data_pipelines.shards import Launch, ShardTask, on_ray, plan_tasks, run_shards
from data_pipelines.sources.source import open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pixels import PIXELS_RAW, PixelRow, pixels_table
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.stage import Made, StageContext
from transfusion.storage.store import Store

IMAGES_PER_SHARD = 64
"""At least so many are taken from a shard: of a large listing, only some shards are read."""


def run(
    config: PixelsConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage."""
    listing = inputs["images"]
    num_shards = len(open_listing(listing).shards)
    num_read = max(1, min(num_shards, config.max_images // IMAGES_PER_SHARD))
    quota = -(-config.max_images // num_read)
    tasks = plan_tasks(
        listing,
        version=context.version,
        config={
            "image_size_px": config.image_size_px,
            "limits": config.limits.identity(),
            "quota": quota,
        },
        upstream={},
    )
    chosen = [tasks[i * num_shards // num_read] for i in range(num_read)]
    done = run_shards(
        context,
        tasks=chosen,
        factory=functools.partial(
            DecodeShard,
            listing,
            config,
            quota,
            store=context.store,
            pool=context.pool,
            num_decoders=max(1, int(context.resources.pool.cpus_per_actor)),
        ),
        unit="images decoded",
        launch=launch,
    )
    return done.made({"image_size_px": config.image_size_px})


class DecodeShard:
    """Decodes one shard at a time."""

    def __init__(
        self,
        listing: Artifact,
        config: PixelsConfig,
        quota: int,
        *,
        store: Store,
        pool: str,
        num_decoders: int,
    ) -> None:
        self._listing = open_listing(listing)
        self._quota, self._num_decoders = quota, num_decoders
        side_px = config.image_size_px
        self._preparation = Preparation(config.limits, ((side_px, side_px),))
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `PIXELS_SCHEMA`."""
        rows: list[PixelRow] = []
        rejects: list[Reject] = []
        images = load_images(
            self._listing.read(task.descriptor),
            preparation=self._preparation,
            decoders=running_decoders(self._num_decoders),
        )
        facts: list[Facts] = []
        for image in itertools.islice(images, self._quota):
            if isinstance(image, Reject):
                rejects.append(image)
            else:
                rows.append(_row(image))
                facts.append(image.prepared.facts)
        notes = count_notes(facts)
        return self._pool.commit(
            task.key,
            {ROWS: pixels_table(rows), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=len(rows) + len(rejects), written=len(rows), rejected=count_reasons(rejects)
            ),
            raw_columns=PIXELS_RAW,
            metadata={"notes": notes} if notes else {},
        )


def _row(image: LoadedImage) -> PixelRow:
    texts = [s.text for s in image.document.segments if isinstance(s, Text)]
    return PixelRow(
        key=image.key,
        image_index=image.image_index,
        sha256=image.prepared.facts.sha256,
        caption=" ".join(texts),
        metadata=image.document.metadata,
        pixels=image.pixels,
    )
