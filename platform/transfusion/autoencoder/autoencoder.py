"""An autoencoder in the diffusers layout: pixels to a posterior, latents to pixels; with a codebook also to codes.

Conventions: pixels are uint8 RGB with channels last outside, and [-1, 1] with channels first inside; latents
are raw (as the encoder makes them) or normalised (mean 0, standard deviation 1 per channel). Of a network with
a codebook the raw latent is that of the nearest codes, and its standard deviation 0.
Axes: b = images, h w = pixels, c i j = latent.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from transfusion.autoencoder.config import LAYOUT
from transfusion.autoencoder.network import (
    Posterior,
    decode_raw,
    downsampling_of,
    latent_channels_of,
    latent_shape_of,
    load_network,
    posterior,
)
from transfusion.autoencoder.quantizer import codebook, is_quantized, nearest_codes, vectors_of
from transfusion.autoencoder.statistics import FILE_NAME, LatentStatistics
from transfusion.errors import ArtifactError
from transfusion.storage.store import sha256_file

FILES = (*LAYOUT, FILE_NAME)
"""What an autoencoder is; an artifact's metrics and pictures lie beside them."""


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
        statistics = LatentStatistics.read(folder, latent_channels=latent_channels_of(network))
        return Autoencoder(network, statistics, digest=folder_digest(folder)).to(device)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return latent_channels_of(self.network)

    @property
    def num_codes(self) -> int | None:
        """Size of the codebook; None where there is none."""
        return len(codebook(self.network)) if is_quantized(self.network) else None

    @property
    def downsampling(self) -> int:
        """Pixels along the side of one latent position."""
        return downsampling_of(self.network)

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image.

        Raises:
            ArtifactError: A side is no multiple of the downsampling.
        """
        return latent_shape_of(self.network, height_px=height_px, width_px=width_px)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b h w 3"]) -> Posterior:
        """The posterior over raw latents, in fp32."""
        return posterior(self.network, to_signal(images.to(self._device())))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c i j"]) -> UInt8[Tensor, "b h w 3"]:
        """Images of normalised latents."""
        raw = self.statistics.denormalize(latents.to(self._device(), torch.float32))
        return to_images(decode_raw(self.network, raw))

    @torch.no_grad()
    def encode_indices(self, images: UInt8[Tensor, "b h w 3"]) -> Int[Tensor, "b i j"]:
        """The number of the code of each latent position.

        Raises:
            ArtifactError: The network has no codebook.
        """
        self._check_quantized()
        latents = self.network.encode(to_signal(images.to(self._device()))).latents
        return nearest_codes(latents, codebook(self.network))

    @torch.no_grad()
    def decode_indices(self, indices: Int[Tensor, "b i j"]) -> UInt8[Tensor, "b h w 3"]:
        """Images of codes: what `decode` gives of their vectors.

        Raises:
            ArtifactError: The network has no codebook.
        """
        self._check_quantized()
        raw = vectors_of(indices.to(self._device()), codebook(self.network))
        return to_images(self.network.decode(raw, force_not_quantize=True).sample)

    @torch.no_grad()
    def reconstruct(self, images: UInt8[Tensor, "b h w 3"]) -> UInt8[Tensor, "b h w 3"]:
        """Images through the posterior's mean and back: the ceiling of whatever is made of latents."""
        return to_images(decode_raw(self.network, self.encode(images).mean))

    def normalize(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """Raw latents to what the transformer sees."""
        return self.statistics.normalize(latents)

    @functools.cached_property
    def num_parameters(self) -> int:
        """Weights of encoder and decoder."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _check_quantized(self) -> None:
        if not is_quantized(self.network):
            raise ArtifactError(
                "the autoencoder has no codebook, so its latents are no codes; train one with "
                "network.codebook_size, or take in a VQModel"
            )


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
