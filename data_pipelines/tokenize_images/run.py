"""Makes token ids of every document of a listing, images included, a shard at a time."""

import functools
from collections.abc import Mapping

from data_pipelines.recaptioned import captions_of
from data_pipelines.shards import Launch, on_ray, plan_tasks, run_shards
from data_pipelines.tokenize_images.config import TokenizeImagesConfig
from data_pipelines.tokenize_images.shard import TokenizeImagesShard
from transfusion.artifacts.artifact import Artifact
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.errors import ArtifactError
from transfusion.stage import Made, StageContext
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer


def run(
    config: TokenizeImagesConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage."""
    listing, folder = inputs["documents"], inputs["autoencoder"]
    tokenizer = Tokenizer(inputs["tokenizer"].read(MODEL))
    autoencoder = Autoencoder.load(folder.folder())
    if autoencoder.num_codes is None:
        raise ArtifactError(
            f"{context.name}: the autoencoder {folder.path} has no codebook; train one with "
            "network.codebook_size, or encode the images to latents (data_pipelines.encode_images)"
        )
    _, height, width = autoencoder.latent_shape(config.image_size_px, config.image_size_px)
    captions = captions_of(inputs)
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.shard_identity(),
        upstream={"tokenizer": tokenizer.digest, "autoencoder": autoencoder.digest},
        with_metadata=True,
        beside=captions,
    )
    done = run_shards(
        context,
        tasks=tasks,
        factory=functools.partial(
            TokenizeImagesShard,
            listing,
            tokenizer,
            folder,
            config,
            captions,
            store=context.store,
            pool=context.pool,
            resources=context.resources.pool,
        ),
        unit="documents tokenized",
        launch=launch,
        max_quarantined=config.max_quarantined_shards,
    )
    return done.made(
        {
            "num_pieces": tokenizer.num_pieces,
            "num_codes": autoencoder.num_codes,
            "code_height": height,
            "code_width": width,
            "image_size_px": config.image_size_px,
            "autoencoder": autoencoder.digest,
        }
    )
