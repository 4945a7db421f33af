"""The model of a run: drawn by all ranks or loaded by one, sharded, and written to files. Plain torch."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from transfusion.model.initial import initial_weight, initialize
from transfusion.model.transformer import TransfusionModel
from transfusion.model.unet import ResidualBlock
from transfusion.model.weights_file import LazyTensors, file_order, write_tensors
from transfusion.resources import TrainResources
from transfusion.sequence.special import SpecialIds
from transfusion.train import width
from transfusion.train.blocks import checkpoint_blocks, compile_blocks
from transfusion.train.config import TrainConfig
from transfusion.train.parallel import AveragedWeights, data_mesh, fill, fill_in_turns, full, shard
from transfusion.train.pretrained import Start, begin_everywhere, freeze_text

RAW_NAME, AVERAGED_NAME = "model.safetensors", "ema.safetensors"


def make_sharded(
    config: TrainConfig,
    resources: TrainResources,
    *,
    special: SpecialIds,
    latent_channels: int,
    device: torch.device,
    start: Start | None,
) -> TransfusionModel:
    """The model with its first weights, which do not depend on the number of ranks."""

    def new(on: str) -> TransfusionModel:
        with torch.device(on):
            return TransfusionModel(
                config.model,
                vocab_size=special.vocab_size,
                latent_channels=latent_channels,
                variance=config.objective.variance,
            )

    model = new("meta")
    if config.frozen_text:
        freeze_text(model)
    checkpoint_blocks(model.blocks, resources.activation_checkpointing)
    if config.compile:
        residual = [module for module in model.modules() if isinstance(module, ResidualBlock)]
        compile_blocks([*model.blocks, *residual])
    mesh = data_mesh(device, shard_group_size=resources.shard_group_for(dist.get_world_size()))
    # The ways of a U-Net are as large as many blocks: by themselves their weights come while others compute.
    ways = [model.down, model.up] if config.model.adapter == "unet" else []
    shard(model, blocks=[*model.blocks, *ways], mesh=mesh, precision=config.precision)
    model.to_empty(device=device)
    scales: dict[str, float] = {}
    if config.base_width is not None:
        scales = width.rates(config.model, base_width=config.base_width)
        # What an update takes off a weight stays as it is at the base.
        model.decay_scales = {name: 1 / scale for name, scale in scales.items()}
    draw = _first_weights(config)
    if start is None:
        fill_in_turns(model, draw)
    else:
        whole: TransfusionModel | None = None
        if dist.get_rank() == 0:
            # On CPU, by one rank, which reads what there is.
            whole = new("meta").to_empty(device="cpu")
            initialize(whole, draw)
        loaded = begin_everywhere(whole, start, special=special)
        if config.lr_scale_pretrained != 1:
            scales |= {n: scales.get(n, 1.0) * config.lr_scale_pretrained for n in loaded}
        fill(model, whole.state_dict() if whole is not None else {})
    model.lr_scales = scales
    return model


def _first_weights(config: TrainConfig) -> Callable[[str, torch.Size], Tensor]:
    """Draws a weight by its name: alike on all ranks, whatever is drawn before it."""
    scales: dict[str, float] = {}
    if config.base_width is not None:
        scales = width.first_scales(config.model, base_width=config.base_width)

    def draw(name: str, shape: torch.Size) -> Tensor:
        weight = initial_weight(name, shape, depth=config.model.depth, seed=config.seed)
        return weight.mul_(scales[name]) if name in scales else weight

    return draw


def write_weights(model: torch.nn.Module, averaged: AveragedWeights, folder: Path) -> None:
    """Raw and averaged weights as safetensors, on rank 0; every rank must call it.

    One tensor is whole at a time, so a model need not fit where a rank runs.
    """
    for name, weights in (
        (RAW_NAME, dict(model.named_parameters())),
        (AVERAGED_NAME, averaged.weights),
    ):
        if dist.get_rank() == 0:
            write_tensors(folder / name, LazyTensors(weights, partial(_full_of, weights)))
        else:
            for key in file_order(weights):
                full(weights[key])


def _full_of(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return full(weights[name])
