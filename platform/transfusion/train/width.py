"""Rates and first weights that follow the width, so that the rate that is best at one width is so at others (muP).

A model as wide as the base is left as it is. In a wider one

    matrices that read the stream, or what grows with it    rate x base / width
    of these the ones that leave it: head, way out          first weights as 1 / width, too
    embeddings, way in, norms, biases, U-Net levels         unchanged: what they read does not grow

Source: Yang et al. 2022, arXiv:2203.03466, table 3 for Adam. Its attention, scaled by one over the width of a
head, is for heads that grow: models here grow by their number, so 1 / sqrt(head_dim) stays.
"""

import math
from collections.abc import Mapping

import torch

from transfusion.model.config import ModelConfig
from transfusion.model.transformer import TransfusionModel


def rates(config: ModelConfig, *, base_width: int) -> dict[str, float]:
    """Learning rates of the matrices that grow on the side they read, against the run's, by parameter name."""
    return dict.fromkeys(_growing(config), base_width / config.dim)


def first_scales(config: ModelConfig, *, base_width: int) -> dict[str, float]:
    """What the first weights of the matrices that leave the stream are multiplied by, by parameter name.

    They are drawn at a fixed standard deviation (head) or as 1 / sqrt(width) (way out of images). What an update
    changes in the stream is aligned with them, so what they make of it would grow with the width.
    """
    share = base_width / config.dim
    return {
        name: share if name == "head.weight" else math.sqrt(share)
        for name, leaves in _growing(config).items()
        if leaves
    }


def _growing(config: ModelConfig) -> dict[str, bool]:
    """The matrices that read what doubles when the width does, and whether what they give does not."""
    shapes, doubled = _shapes(config), _shapes(_twice_as_wide(config))
    return {
        name: doubled[name][0] == shape[0]
        for name, shape in shapes.items()
        # An embedding reads an id.
        if len(shape) > 1 and doubled[name][1] > shape[1] and not name.startswith("embedding.")
    }


def _twice_as_wide(config: ModelConfig) -> ModelConfig:
    wider = {
        "dim": 2 * config.dim,
        "num_heads": 2 * config.num_heads,
        "num_kv_heads": 2 * config.kv_heads,
        "ffn_dim": 2 * config.hidden_dim,
    }
    return ModelConfig.model_validate(dict(config) | wider)


def _shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = TransfusionModel(config, vocab_size=1, latent_channels=1)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
