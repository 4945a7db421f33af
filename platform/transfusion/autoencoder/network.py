"""The networks behind an autoencoder: built, loaded and saved in the diffusers layout, and run.

What tells a `VQModel` from an `AutoencoderKL` is here and in `quantizer`; above, both have a posterior.
Axes: b = images, h w = pixels, c i j = latent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.autoencoder.config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AutoencoderConfig,
    check_layout,
)
from transfusion.autoencoder.quantizer import codebook, is_quantized, nearest_codes, vectors_of
from transfusion.errors import ArtifactError

NETWORKS = ("AutoencoderKL", "VQModel")
"""The classes of diffusers that are taken in."""

INITIAL_LOG_VARIANCE = -6.0

INITIAL_CODE_STD = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """The encoder's normal distribution over raw latents."""

    mean: Float[Tensor, "b c i j"]
    std: Float[Tensor, "b c i j"]

    def sample(self, noise: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """The latent that unit normal noise picks."""
        return self.mean + self.std * noise


def build_network(config: AutoencoderConfig, *, sample_size_px: int) -> Any:
    """A diffusers `AutoencoderKL` or `VQModel` with fresh weights from torch's current random state."""
    levels = len(config.block_channels)
    shape: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(config.block_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.attention == "middle",
        "sample_size": sample_size_px,
        "force_upcast": False,
    }
    if config.codebook_size is not None:
        return _build_quantized(shape, config.codebook_size)
    from diffusers import AutoencoderKL

    network = AutoencoderKL(**shape)
    # The posterior starts narrow: noise as wide as the latents would hide them from the decoder at first
    # (27.1 against 24.4 dB after 25 s of one core on drawn shapes).
    with torch.no_grad():
        network.quant_conv.bias[config.latent_channels :].fill_(INITIAL_LOG_VARIANCE)
    return network


def _build_quantized(shape: Mapping[str, Any], codebook_size: int) -> Any:
    from diffusers import VQModel

    network = VQModel(**shape, num_vq_embeddings=codebook_size)
    # As wide as latents are at first. Those of diffusers lie within 1 / k of zero: all positions would begin at
    # the few outermost of them.
    with torch.no_grad():
        codebook(network).normal_(std=INITIAL_CODE_STD)
    return network


def load_network(folder: Path) -> Any:
    """A diffusers network from a folder of config and safetensors; no pickle, no network.

    Raises:
        ArtifactError: The folder is not in the diffusers layout of one of `NETWORKS`.
    """
    check_layout(folder)
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
        kind = config.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder / CONFIG_NAME}: is not a JSON object: {error}") from error
    if kind not in NETWORKS:
        raise ArtifactError(
            f"{folder / CONFIG_NAME}: must be an {' or a '.join(NETWORKS)}, is {kind!r}"
        )
    import diffusers
    from safetensors.torch import load_file

    # Not `from_pretrained`: it looks to the hub for what it misses, and reads pickles.
    network = getattr(diffusers, kind).from_config(config)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{folder / WEIGHTS_NAME}: does not fit {CONFIG_NAME}: {reason}"
        ) from error
    return network


def save_network(folder: Path, *, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes the diffusers layout: `config` as the network's, weights as safetensors in fp32."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # `_diffusers_version` and the like are provenance: the same weights must give the same bytes.
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    record = {
        "_class_name": "VQModel" if "num_vq_embeddings" in plain else "AutoencoderKL",
        **plain,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def latent_channels_of(network: Any) -> int:
    """Channels of a network's raw latents."""
    config = network.config
    return int(config.get("vq_embed_dim") or config.latent_channels)


def downsampling_of(network: Any) -> int:
    """Pixels along the side of one latent position."""
    return int(2 ** (len(network.config.block_out_channels) - 1))


def latent_shape_of(network: Any, *, height_px: int, width_px: int) -> tuple[int, int, int]:
    """Channels, height and width of the latent of an image.

    Raises:
        ArtifactError: A side is no multiple of the downsampling.
    """
    size = downsampling_of(network)
    if height_px % size or width_px % size:
        raise ArtifactError(
            f"image of {height_px} x {width_px} px: sides must be multiples of {size}, the autoencoder's "
            "downsampling"
        )
    return latent_channels_of(network), height_px // size, width_px // size


def decode_raw(network: Any, raw: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
    """The signal of raw latents; they are moved to the nearest codes where there is a codebook."""
    if not is_quantized(network):
        return network.decode(raw).sample
    table = codebook(network)
    snapped = vectors_of(nearest_codes(raw, table), table)
    return network.decode(snapped, force_not_quantize=True).sample


def posterior(network: Any, signal: Float[Tensor, "b 3 h w"]) -> Posterior:
    """Runs the encoder; gradients flow, but not past a codebook."""
    if is_quantized(network):
        table = codebook(network)
        nearest = vectors_of(nearest_codes(network.encode(signal).latents, table), table).float()
        return Posterior(mean=nearest, std=torch.zeros_like(nearest))
    distribution = network.encode(signal).latent_dist
    return Posterior(mean=distribution.mean.float(), std=distribution.std.float())
