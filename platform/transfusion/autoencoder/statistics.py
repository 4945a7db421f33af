"""Per-channel shift and scale of latents: constants that belong to an autoencoder.

They come from sampled latents of a frozen calibration set. As a property of the autoencoder they do not drift
as data grows, which they would as a property of the latents.
Axes: b = images, c h w = latent.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.errors import ArtifactError

FILE_NAME = "latent_statistics.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentStatistics:
    """normalised = (latent - shift) / scale, per channel."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    num_images: int
    """Images of the calibration set."""

    def normalize(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Raw latents to mean 0 and standard deviation 1."""
        shift, scale = self._columns(latents)
        return (latents - shift) / scale

    def denormalize(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The inverse of `normalize`."""
        shift, scale = self._columns(latents)
        return latents * scale + shift

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1)
        shift = torch.tensor(self.shift, dtype=like.dtype, device=like.device).view(shape)
        scale = torch.tensor(self.scale, dtype=like.dtype, device=like.device).view(shape)
        return shift, scale

    def write(self, folder: Path) -> None:
        """Writes `latent_statistics.json` into an autoencoder's folder."""
        record = {"shift": self.shift, "scale": self.scale, "num_images": self.num_images}
        (folder / FILE_NAME).write_text(json.dumps(record, indent=1) + "\n")

    @staticmethod
    def read(folder: Path, *, latent_channels: int) -> "LatentStatistics":
        """Reads an autoencoder's constants.

        Raises:
            ArtifactError: The file is missing, or is not one of this number of channels.
        """
        place = folder / FILE_NAME
        if not place.is_file():
            raise ArtifactError(
                f"{place}: there is no such file; an autoencoder made elsewhere gets its constants from the "
                "stage `uses: transfusion.autoencoder` with `path: FOLDER`"
            )
        try:
            record = json.loads(place.read_text())
            found = LatentStatistics(
                shift=tuple(float(value) for value in record["shift"]),
                scale=tuple(float(value) for value in record["scale"]),
                num_images=int(record["num_images"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{place}: is not a record of latent statistics: {error}"
            ) from error
        if not len(found.shift) == len(found.scale) == latent_channels:
            raise ArtifactError(
                f"{place}: has {len(found.shift)} channels, the autoencoder has {latent_channels}"
            )
        return found


def measure(latents: Float[Tensor, "b c h w"]) -> LatentStatistics:
    """The statistics of sampled latents, summed in fp64 so that order and count do not show."""
    flat = latents.double().transpose(0, 1).flatten(1)
    return LatentStatistics(
        shift=tuple(flat.mean(dim=1).tolist()),
        scale=tuple(flat.std(dim=1, correction=0).clamp(min=1e-6).tolist()),
        num_images=len(latents),
    )
