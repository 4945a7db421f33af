"""Encodes every image of a listing, a shard at a time: read, decode, encode and store, in one actor.

The posterior's mean and standard deviation are kept, not a sample of it: training draws a new sample each
epoch, and the constants that normalise latents belong to the autoencoder.
"""

import functools
from collections.abc import Mapping

import numpy as np
import torch

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.images import Crop, ImageOfDocument, crop_image, images_of_shard
from data_pipelines.shards import Launch, ShardTask, on_ray, plan_tasks, run_shards
from data_pipelines.sources.source import open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_RAW, LatentRow, latents_table
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.stage import Made, StageContext
from transfusion.storage.store import Store


def run(
    config: EncodeImagesConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage.

    Raises:
        ArtifactError: The crop does not fit the autoencoder, or a shard failed.
    """
    listing, folder = inputs["images"], inputs["autoencoder"]
    autoencoder = Autoencoder.load(folder.folder())
    size = config.image_size_px
    channels, height, width = autoencoder.latent_shape(size, size)
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
            EncodeShard, listing, folder, config, store=context.store, pool=context.pool
        ),
        unit="images encoded",
        launch=launch,
    )
    return done.made(
        {
            "latent_channels": channels,
            "latent_height": height,
            "latent_width": width,
            "image_size_px": size,
        }
    )


class EncodeShard:
    """Holds one autoencoder and encodes one shard at a time."""

    def __init__(
        self,
        listing: Artifact,
        folder: Artifact,
        config: EncodeImagesConfig,
        *,
        store: Store,
        pool: str,
    ) -> None:
        torch.set_num_threads(config.threads_per_actor)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._autoencoder = Autoencoder.load(folder.folder(), device=self._device)
        self._listing = open_listing(listing)
        self._config = config
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `LATENTS_SCHEMA`."""
        rows: list[LatentRow] = []
        rejects: list[Reject] = []
        waiting: list[tuple[ImageOfDocument, Crop]] = []
        num_input = without = 0
        for item in images_of_shard(self._listing, task.descriptor):
            num_input += 1
            if item is None:
                without += 1
                continue
            if isinstance(item, Reject):
                rejects.append(item)
                continue
            crop = crop_image(item, size_px=self._config.image_size_px, limits=self._config.limits)
            if isinstance(crop, Reject):
                rejects.append(crop)
                continue
            waiting.append((item, crop))
            if len(waiting) == self._config.micro_batch:
                rows += self._encode(waiting)
                waiting = []
        if waiting:
            rows += self._encode(waiting)
        return self._pool.commit(
            task.key,
            {ROWS: latents_table(rows), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=num_input,
                written=len(rows),
                filtered={"no_image": without} if without else {},
                rejected=count_reasons(rejects),
            ),
            raw_columns=LATENTS_RAW,
        )

    def _encode(self, images: list[tuple[ImageOfDocument, Crop]]) -> list[LatentRow]:
        """Encodes one micro-batch, padded to its fixed size with its last image."""
        padding = self._config.micro_batch - len(images)
        pixels = np.stack([crop.pixels for _, crop in images] + [images[-1][1].pixels] * padding)
        bf16 = self._config.precision == "bf16"
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=bf16),
        ):
            posterior = self._autoencoder.encode(torch.from_numpy(pixels))
        mean = posterior.mean.to("cpu", torch.float16).numpy()
        std = posterior.std.to("cpu", torch.float16).numpy()
        return [
            LatentRow(
                key=image.document.key,
                image_index=image.index,
                mean=mean[i],
                std=std[i],
                original_height=crop.original_height,
                original_width=crop.original_width,
                sha256=image.sha256,
            )
            for i, (image, crop) in enumerate(images)
        ]
