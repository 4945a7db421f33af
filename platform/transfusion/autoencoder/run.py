"""Body of the stage that takes in an autoencoder made elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.artifacts.publish import publish_folder
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.calibrate import calibrate, mean_psnr_db
from transfusion.autoencoder.config import LoadAutoencoderConfig
from transfusion.autoencoder.network import load_network, save_network
from transfusion.errors import ArtifactError
from transfusion.stage import Made, StageContext


def run(
    config: LoadAutoencoderConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Made:
    """Copies the autoencoder, measures the statistics of its latents and its quality."""
    rows = read_pixels(inputs["images"])[: config.calibration_images]
    if not rows:
        raise ArtifactError(f"{inputs['images'].path}: holds no images to calibrate on")
    images = torch.from_numpy(np.stack([row.pixels for row in rows]))
    network = load_network(Path(config.path).expanduser())
    folder = context.scratch / "autoencoder"
    save_network(folder, config=dict(network.config), weights=network.state_dict())
    calibrate(network, images).write(folder)
    ready = Autoencoder.load(folder)
    quality = mean_psnr_db(ready, images)
    context.log.info(f"{quality:.1f} dB on {len(images):,} images")
    return Made(
        files=publish_folder(context.store, context.folder, folder),
        metadata=metadata_of(ready, images),
        metrics={"psnr_db": quality},
    )


def metadata_of(autoencoder: Autoencoder, images: torch.Tensor) -> dict[str, Any]:
    """The artifact's constants.

    Raises:
        ArtifactError: The images' sides are no multiples of the downsampling.
    """
    autoencoder.latent_shape(images.shape[1], images.shape[2])
    found = {
        "latent_channels": autoencoder.latent_channels,
        "downsampling": autoencoder.downsampling,
        "digest": autoencoder.digest,
        "num_parameters": autoencoder.num_parameters,
    }
    if autoencoder.num_codes is not None:
        found["num_codes"] = autoencoder.num_codes
    return found
