"""A tiny model with random weights, and the config of its package: enough to check the sampler's arithmetic."""

from typing import Any

import torch

from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

NUM_PIECES = 40
LATENT = (4, 4, 4)
QUICK = {"solver": "dpm++", "num_inference_steps": 10}


def package_config(**changed: Any) -> PackageConfig:
    values = {
        "name": "tiny",
        "model": model_config(),
        "num_pieces": NUM_PIECES,
        "special_ids": {},
        "layout": SequenceLayout(patch_size=2),
        "sequence_length": 64,
        "latent_channels": LATENT[0],
        "latent_height": LATENT[1],
        "latent_width": LATENT[2],
        "image_size_px": 16,
        "schedule": "cosine",
        "num_timesteps": 1000,
        "sampling": SamplingDefaults(),
        "files": {},
    }
    return PackageConfig(**(values | changed))


def model_config(adapter: str = "unet") -> ModelConfig:
    return ModelConfig(
        dim=32,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        patch_size=2,
        adapter=adapter,
        unet=UNetConfig(channels=(8, 16), time_dim=16),
    )


def tiny_model(seed: int = 0, adapter: str = "unet") -> TransfusionModel:
    model = TransfusionModel(
        model_config(adapter),
        vocab_size=SpecialIds.after(NUM_PIECES).vocab_size,
        latent_channels=LATENT[0],
    )
    model.init_weights(seed)
    with torch.no_grad():
        # Fresh weights hardly attend: make what is far matter, so that a wrong mask or position shows.
        for name, parameter in model.named_parameters():
            if "attention" in name and parameter.ndim == 2:
                parameter.mul_(8)
            if name in ("head.weight", "up.conv_out.weight", "up.project.weight"):
                parameter.mul_(4)
    return model.eval()
