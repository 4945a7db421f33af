"""Encodes every image of a listing, a shard at a time; keeps mean and standard deviation, not a sample."""

import functools
from collections.abc import Mapping
from typing import Any

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.encode_images.shard import EncodeShard
from data_pipelines.shards import Launch, on_ray, plan_tasks, run_shards
from transfusion.artifacts.artifact import Artifact
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.stage import Made, StageContext


def run(
    config: EncodeImagesConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage."""
    listing, folder = inputs["images"], inputs["autoencoder"]
    autoencoder = Autoencoder.load(folder.folder())
    shapes = [autoencoder.latent_shape(*size) for size in config.sizes_px]
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.shard_identity(),
        upstream={"autoencoder": autoencoder.digest},
    )
    done = run_shards(
        context,
        tasks=tasks,
        factory=functools.partial(
            EncodeShard,
            listing,
            folder,
            config,
            store=context.store,
            pool=context.pool,
            resources=context.resources.pool,
        ),
        unit="images encoded",
        launch=launch,
        max_quarantined=config.max_quarantined_shards,
    )
    channels, height, width = shapes[0]
    metadata: dict[str, Any] = {
        "latent_channels": channels,
        "image_size_px": config.image_size_px,
        "autoencoder": autoencoder.digest,
    }
    if config.buckets is None:
        metadata |= {"latent_height": height, "latent_width": width}
    else:
        metadata |= {"latent_sizes": [list(shape[1:]) for shape in shapes]}
    return done.made(metadata)
