"""A KL autoencoder in the diffusers layout: pixels to a posterior, latents to pixels.

Conventions: pixels are uint8 RGB with channels last outside, and [-1, 1] with channels first inside; latents
are raw (as the encoder makes them) or normalised (mean 0, standard deviation 1 per channel).
Axes: b = images, h w = pixels, c i j = latent.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.statistics import FILE_NAME, LatentStatistics
from transfusion.errors import ArtifactError
from transfusion.storage.store import sha256_file

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
FILES = (CONFIG_NAME, WEIGHTS_NAME, FILE_NAME)
"""What an autoencoder is; an artifact's metrics and pictures lie beside them."""

INITIAL_LOG_VARIANCE = -6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """The encoder's normal distribution over raw latents."""

    mean: Float[Tensor, "b c i j"]
    std: Float[Tensor, "b c i j"]

    def sample(self, noise: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """The latent that unit normal noise picks."""
        return self.mean + self.std * noise


def build_network(config: AutoencoderConfig, *, sample_size_px: int) -> Any:
    """A diffusers `AutoencoderKL` with fresh weights from torch's current random state."""
    from diffusers import AutoencoderKL

    levels = len(config.block_channels)
    network = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.block_channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.attention == "middle",
        sample_size=sample_size_px,
        force_upcast=False,
    )
    # The posterior starts narrow: noise as wide as the latents would hide them from the decoder at first
    # (27.1 against 24.4 dB after 25 s of one core on drawn shapes).
    with torch.no_grad():
        network.quant_conv.bias[config.latent_channels :].fill_(INITIAL_LOG_VARIANCE)
    return network


def load_network(folder: Path) -> Any:
    """A diffusers `AutoencoderKL` from a folder of config and safetensors; no pickle, no network.

    Raises:
        ArtifactError: The folder is not in the diffusers layout of an AutoencoderKL.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ArtifactError(
                f"{folder}: holds no {name}; an autoencoder is a folder in the diffusers layout, with "
                f"{CONFIG_NAME} and {WEIGHTS_NAME}"
            )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
        kind = config.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder / CONFIG_NAME}: is not a JSON object: {error}") from error
    if kind != "AutoencoderKL":
        raise ArtifactError(f"{folder / CONFIG_NAME}: must be an AutoencoderKL, is {kind!r}")
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    # Not `from_pretrained`: it looks to the hub for what it misses, and reads pickles.
    network = AutoencoderKL.from_config(config)
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
    record = {"_class_name": "AutoencoderKL", **plain}
    (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


class Autoencoder(nn.Module):
    """A frozen network with its latent statistics, for encoding and decoding."""

    def __init__(self, network: Any, statistics: LatentStatistics, *, digest: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.statistics = statistics
        self.digest = digest
        """sha256 of weights, architecture and statistics: what latents made with it depend on."""

    @staticmethod
    def load(folder: Path, *, device: torch.device | str = "cpu") -> "Autoencoder":
        """Loads a folder in the diffusers layout with `latent_statistics.json`.

        Raises:
            ArtifactError: Something is missing or does not fit.
        """
        network = load_network(folder)
        statistics = LatentStatistics.read(folder, latent_channels=network.config.latent_channels)
        return Autoencoder(network, statistics, digest=folder_digest(folder)).to(device)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.network.config.latent_channels)

    @property
    def downsampling(self) -> int:
        """Pixels along the side of one latent position."""
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image.

        Raises:
            ArtifactError: A side is no multiple of the downsampling.
        """
        if height_px % self.downsampling or width_px % self.downsampling:
            raise ArtifactError(
                f"image of {height_px} x {width_px} px: sides must be multiples of {self.downsampling}, "
                "the autoencoder's downsampling"
            )
        return (
            self.latent_channels,
            height_px // self.downsampling,
            width_px // self.downsampling,
        )

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b h w 3"]) -> Posterior:
        """The posterior over raw latents, in fp32."""
        return posterior(self.network, to_signal(images.to(self._device())))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c i j"]) -> UInt8[Tensor, "b h w 3"]:
        """Images of normalised latents."""
        raw = self.statistics.denormalize(latents.to(self._device(), torch.float32))
        return to_images(self.network.decode(raw).sample)

    @torch.no_grad()
    def reconstruct(self, images: UInt8[Tensor, "b h w 3"]) -> UInt8[Tensor, "b h w 3"]:
        """Images through the posterior's mean and back: the ceiling of whatever is made of latents."""
        return to_images(self.network.decode(self.encode(images).mean).sample)

    def normalize(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """Raw latents to what the transformer sees."""
        return self.statistics.normalize(latents)

    def denormalize(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """The inverse of `normalize`."""
        return self.statistics.denormalize(latents)

    @functools.cached_property
    def num_parameters(self) -> int:
        """Weights of encoder and decoder."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def posterior(network: Any, signal: Float[Tensor, "b 3 h w"]) -> Posterior:
    """Runs the encoder; gradients flow."""
    distribution = network.encode(signal).latent_dist
    return Posterior(mean=distribution.mean.float(), std=distribution.std.float())


def folder_digest(folder: Path) -> str:
    """Identity of an autoencoder's folder by content."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return digest.hexdigest()


def to_signal(images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes 0..255 to [-1, 1], channels first."""
    return rearrange(images, "b h w c -> b c h w").float() / 127.5 - 1.0


def to_images(signal: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b h w 3"]:
    """[-1, 1] to bytes, rounded and clipped, channels last."""
    levels = ((signal.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "b c h w -> b h w c").contiguous()


def psnr_db(
    images: UInt8[Tensor, "b h w 3"], reference: UInt8[Tensor, "b h w 3"]
) -> Float[Tensor, " b"]:
    """Peak signal to noise ratio of each image, in decibels; an exact copy counts as 99."""
    error = (images.double() - reference.double()).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(255.0**2 / error.clamp(min=1e-6))).clamp(max=99.0).float()
