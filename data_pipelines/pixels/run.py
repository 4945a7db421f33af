"""Decodes a sample of a listing's images, a shard at a time."""

import functools
from collections.abc import Mapping

from data_pipelines.documents import Text
from data_pipelines.images import ImageOfDocument, crop_image, images_of_shard
from data_pipelines.pixels.config import PixelsConfig
from data_pipelines.shards import Launch, ShardTask, on_ray, plan_tasks, run_shards
from data_pipelines.sources.source import open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pixels import PIXELS_RAW, PixelRow, pixels_table
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.stage import Made, StageContext
from transfusion.storage.store import Store


def run(
    config: PixelsConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage."""
    listing = inputs["images"]
    identity = config.identity()
    identity.pop("max_shards", None)  # how many shards are taken does not change any of them
    tasks = plan_tasks(listing, version=context.version, config=identity, upstream={})
    # Ids are digests of identities: their order is a fair draw that growth elsewhere leaves alone.
    picked = {
        task.shard_id for task in sorted(tasks, key=lambda task: task.shard_id)[: config.max_shards]
    }
    done = run_shards(
        context,
        tasks=[task for task in tasks if task.shard_id in picked],
        factory=functools.partial(
            DecodeShard, listing, config, store=context.store, pool=context.pool
        ),
        unit="images decoded",
        launch=launch,
    )
    return done.made({"image_size_px": config.image_size_px})


class DecodeShard:
    """Decodes one shard at a time."""

    def __init__(self, listing: Artifact, config: PixelsConfig, *, store: Store, pool: str) -> None:
        self._listing = open_listing(listing)
        self._config = config
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `PIXELS_SCHEMA`."""
        found: list[tuple[bytes, ImageOfDocument]] = []
        rejects: list[Reject] = []
        num_input = without = 0
        for item in images_of_shard(self._listing, task.descriptor):
            num_input += 1
            if item is None:
                without += 1
            elif isinstance(item, Reject):
                rejects.append(item)
            else:
                found.append((item.sha256, item))
        found.sort(key=lambda pair: (pair[0], pair[1].name))
        picked = found[: self._config.max_images_per_shard]
        rows: list[PixelRow] = []
        for sha256, image in picked:
            crop = crop_image(image, size_px=self._config.image_size_px, limits=self._config.limits)
            if isinstance(crop, Reject):
                rejects.append(crop)
                continue
            texts = [s.text for s in image.document.segments if isinstance(s, Text)]
            rows.append(
                PixelRow(
                    key=image.document.key,
                    image_index=image.index,
                    sha256=sha256,
                    caption=" ".join(texts),
                    metadata=image.document.metadata,
                    pixels=crop.pixels,
                )
            )
        filtered = {"no_image": without, "not_sampled": len(found) - len(picked)}
        return self._pool.commit(
            task.key,
            {ROWS: pixels_table(rows), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=num_input,
                written=len(rows),
                filtered={reason: count for reason, count in filtered.items() if count},
                rejected=count_reasons(rejects),
            ),
            raw_columns=PIXELS_RAW,
        )
