"""Encodes every image of a listing, a shard at a time; keeps mean and standard deviation, not a sample."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.images import LoadedImage, load_images
from data_pipelines.shards import Launch, ShardTask, on_ray, plan_tasks, run_shards
from data_pipelines.sources.source import open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_INDEX, LATENTS_RAW, LatentRow, latents_table
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, Reject, count_reasons, rejects_table
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
    """The body of the stage."""
    listing, folder = inputs["images"], inputs["autoencoder"]
    autoencoder = Autoencoder.load(folder.folder())
    channels, height, width = autoencoder.latent_shape(config.image_size_px, config.image_size_px)
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.identity(),
        upstream={"autoencoder": autoencoder.digest},
    )
    pool = context.resources.pool
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
            num_decode_threads=max(1, int(pool.cpus_per_actor)),
            device="cuda" if pool.gpus_per_actor else "cpu",
        ),
        unit="images encoded",
        launch=launch,
    )
    return done.made(
        {
            "latent_channels": channels,
            "latent_height": height,
            "latent_width": width,
            "image_size_px": config.image_size_px,
            "autoencoder": autoencoder.digest,
        }
    )


class EncodeShard:
    """Holds one autoencoder; encodes one shard at a time, and of it only a micro-batch of pixels."""

    def __init__(
        self,
        listing: Artifact,
        autoencoder: Artifact,
        config: EncodeImagesConfig,
        *,
        store: Store,
        pool: str,
        num_decode_threads: int,
        device: str,
    ) -> None:
        self._threads = config.threads_per_actor
        self._listing = open_listing(listing)
        self._autoencoder = Autoencoder.load(autoencoder.folder(), device=device)
        self._config, self._device = config, device
        self._pool = ShardPool(store, pool)
        self._num_decode_threads = num_decode_threads

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `LATENTS_SCHEMA`."""
        rows: list[LatentRow] = []
        rejects: list[Reject] = []
        waiting: list[LoadedImage] = []
        with _threads(self._threads):
            for image in load_images(
                self._listing.read(task.descriptor),
                image_size_px=self._config.image_size_px,
                limits=self._config.limits,
                num_threads=self._num_decode_threads,
            ):
                if isinstance(image, Reject):
                    rejects.append(image)
                    continue
                waiting.append(image)
                if len(waiting) == self._config.micro_batch:
                    rows += self._encode(waiting)
                    waiting = []
            if waiting:
                rows += self._encode(waiting)
        table = latents_table(rows)
        return self._pool.commit(
            task.key,
            {ROWS: table, INDEX: table.select(LATENTS_INDEX), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=len(rows) + len(rejects), written=len(rows), rejected=count_reasons(rejects)
            ),
            raw_columns=LATENTS_RAW,
        )

    def _encode(self, images: Sequence[LoadedImage]) -> Iterator[LatentRow]:
        size = self._config.image_size_px
        batch = np.zeros((self._config.micro_batch, size, size, 3), np.uint8)
        for place, image in zip(batch, images, strict=False):
            place[...] = image.pixels
        with torch.autocast(self._device, torch.bfloat16, enabled=self._config.precision == "bf16"):
            posterior = self._autoencoder.encode(torch.from_numpy(batch))
        means = posterior.mean.cpu().numpy().astype(np.float16)
        stds = posterior.std.cpu().numpy().astype(np.float16)
        for image, mean, std in zip(images, means, stds, strict=False):
            yield LatentRow(
                key=image.key,
                image_index=image.image_index,
                mean=mean,
                std=std,
                original_height=image.original_height,
                original_width=image.original_width,
                sha256=image.sha256,
                phash=image.phash,
            )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
