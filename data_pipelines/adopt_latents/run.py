"""Takes latents in, a shard at a time: their shape, type and constants are checked first."""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.adopt_latents.arrays import BadLatent, posterior
from data_pipelines.adopt_latents.config import AdoptLatentsConfig
from data_pipelines.document_images import document_images
from data_pipelines.documents import Document, Image
from data_pipelines.shards import Launch, ShardTask, on_ray, plan_tasks, run_shards
from data_pipelines.sources.source import Listing, ShardDescriptor, open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_INDEX, LATENTS_RAW, LatentRow, latents_table
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.errors import ArtifactError
from transfusion.stage import Made, StageContext
from transfusion.storage.store import Store

MOST_CHECKED = 512
"""Latents that are looked at before any work."""

FEWEST_CHECKED = 64
"""Fewer in a shard say too little of a channel: their spread alone would fail the check."""

Shape = tuple[int, int, int]


def run(
    config: AdoptLatentsConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage.

    Raises:
        ArtifactError: None of the first documents holds a latent as described, or their statistics are not
            those of the autoencoder.
    """
    listing = inputs["latents"]
    autoencoder = Autoencoder.load(inputs["autoencoder"].folder())
    shape = autoencoder.latent_shape(config.image_size_px, config.image_size_px)
    _check_first(open_listing(listing), config, shape, autoencoder.statistics)
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.identity(),
        upstream={"autoencoder": autoencoder.digest},
    )
    done = run_shards(
        context,
        tasks=tasks,
        factory=functools.partial(
            AdoptShard,
            listing,
            config,
            shape,
            autoencoder.statistics,
            store=context.store,
            pool=context.pool,
        ),
        unit="latents adopted",
        launch=launch,
    )
    return done.made(
        {
            "latent_channels": shape[0],
            "latent_height": shape[1],
            "latent_width": shape[2],
            "image_size_px": config.image_size_px,
            "autoencoder": autoencoder.digest,
        }
    )


class AdoptShard:
    """Takes in one shard at a time."""

    def __init__(
        self,
        listing: Artifact,
        config: AdoptLatentsConfig,
        shape: Shape,
        statistics: LatentStatistics,
        *,
        store: Store,
        pool: str,
    ) -> None:
        self._listing = open_listing(listing)
        self._config, self._shape, self._statistics = config, shape, statistics
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `LATENTS_SCHEMA`, without a perceptual hash.

        Raises:
            ArtifactError: The shard's statistics are not those of the autoencoder.
        """
        found = list(read_latents(self._listing, task.descriptor, self._config, self._shape))
        rows = [row for row in found if isinstance(row, LatentRow)]
        rejects = [row for row in found if isinstance(row, Reject)]
        if len(rows) >= FEWEST_CHECKED:
            check_statistics(rows, self._statistics, self._config.max_statistics_error)
        table = latents_table(rows)
        return self._pool.commit(
            task.key,
            {ROWS: table, INDEX: table.select(LATENTS_INDEX), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(input=len(found), written=len(rows), rejected=count_reasons(rejects)),
            raw_columns=LATENTS_RAW,
        )


def read_latents(
    listing: Listing, descriptor: ShardDescriptor, config: AdoptLatentsConfig, shape: Shape
) -> Iterator[LatentRow | Reject]:
    """Every latent of a shard's documents, or why there is none."""
    for found in document_images(listing.read(descriptor)):
        yield found if isinstance(found, Reject) else _row(*found, config, shape)


def check_statistics(
    rows: Sequence[LatentRow], statistics: LatentStatistics, max_error: float
) -> None:
    """Compares the channels with the autoencoder's constants.

    Raises:
        ArtifactError: A channel lies too far off; names it, and what it looks like.
    """
    means = np.stack([row.mean for row in rows]).astype(np.float64)
    variance = np.stack([row.std for row in rows]).astype(np.float64) ** 2
    for channel, (shift, scale) in enumerate(zip(statistics.shift, statistics.scale, strict=True)):
        mean = float(means[:, channel].mean())
        std = float(np.sqrt(means[:, channel].var() + variance[:, channel].mean()))
        far = abs(mean - shift) / scale
        wide = abs(math.log(max(std, 1e-12) / scale))
        if max(far, wide) > max_error:
            raise ArtifactError(
                f"channel {channel} of {len(rows)} latents has mean {mean:.3g} and standard deviation "
                f"{std:.3g}, the autoencoder's constants say {shift:.3g} and {scale:.3g}: they were made "
                "by another autoencoder, or scaled (set scaling_factor, shift_factor) or stored "
                "otherwise (set holds)"
            )


def _check_first(
    listing: Listing, config: AdoptLatentsConfig, shape: Shape, statistics: LatentStatistics
) -> None:
    found = itertools.chain.from_iterable(
        read_latents(listing, descriptor, config, shape) for descriptor in listing.shards
    )
    first = list(itertools.islice(found, MOST_CHECKED))
    rows = [row for row in first if isinstance(row, LatentRow)]
    if not rows:
        told = next((f"{row.key}: {row.detail}" for row in first if isinstance(row, Reject)), "")
        raise ArtifactError(
            f"none of the first {len(first)} documents holds a latent as described; {told}"
        )
    check_statistics(rows, statistics, config.max_statistics_error)


def _row(
    document: Document, index: int, image: Image, config: AdoptLatentsConfig, shape: Shape
) -> LatentRow | Reject:
    try:
        mean, std = posterior(image.data, config, shape)
    except BadLatent as fault:
        return Reject(document.key, "bad_latent", f"{image.name}: {fault}")
    return LatentRow(
        key=document.key,
        image_index=index,
        mean=mean,
        std=std,
        original_height=_side(document, "height", config.image_size_px),
        original_width=_side(document, "width", config.image_size_px),
        sha256=hashlib.sha256(image.data).digest(),
        phash=None,
    )


def _side(document: Document, name: str, otherwise: int) -> int:
    """What the source says of the image's size: img2dataset and most tables have it as metadata."""
    said = document.metadata.get(name)
    return said if isinstance(said, int) and 0 < said < 2**31 else otherwise
