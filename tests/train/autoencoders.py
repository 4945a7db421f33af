"""An autoencoder that is trained in seconds, and what it is trained on."""

import numpy as np
import torch

from tests.train.worlds import train_as
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.train.autoencoder.config import TrainAutoencoderConfig
from transfusion.train.autoencoder.crops import Crops
from transfusion.train.autoencoder.trainee import AutoencoderTrainee

CODES = AutoencoderConfig(block_channels=(8, 8), latent_channels=4, norm_groups=4, codebook_size=64)


def crops(count=24, size=16):
    """Flat colours: two numbers an image, so that a little training shows."""
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    images = np.broadcast_to(colours, (count, size, size, 3)).copy()
    return Crops(keys=[f"image-{index}" for index in range(count)], images=images)


def settings(**changed):
    values = {
        "network": AutoencoderConfig(block_channels=(8, 8), latent_channels=4, norm_groups=4),
        "steps": 30,
        "lr": 5e-3,
        "batch_size": 8,
        "heldout_images": 8,
        "calibration_images": 16,
        "validate_every_steps": 10,
        "checkpoint_every_steps": 10,
        "seed": 1,
    }
    return TrainAutoencoderConfig(**(values | changed))


def train(folder, stop_after=None, resources=None, **changed):
    cpu = torch.device("cpu")
    trainee = AutoencoderTrainee(settings(**changed), crops(), device=cpu, resources=resources)
    return train_as(trainee, folder, stop_after=stop_after, resources=resources)
