"""The architecture of an autoencoder that is trained here, and where one made elsewhere lies."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from transfusion.config import Config, Location
from transfusion.errors import ArtifactError
from transfusion.storage.store import sha256_file

LAYOUT = CONFIG_NAME, WEIGHTS_NAME = "config.json", "diffusion_pytorch_model.safetensors"
"""Files of an autoencoder in the diffusers layout."""


class AutoencoderConfig(Config):
    """A convolutional autoencoder: diffusers' `AutoencoderKL`, or with a codebook its `VQModel`."""

    block_channels: tuple[int, ...] = (16, 32, 32)
    """Channels of each level, the finest first; every level after the first halves the side."""

    layers_per_block: int = Field(1, ge=0)
    """Residual layers a level of the encoder; the decoder has one more. 0 halves the work and so suits small
    budgets: the encoder is then strided convolutions and its middle."""

    attention: Literal["none", "middle"] = "none"
    """Whether positions of the coarsest level see each other."""

    latent_channels: int = Field(8, ge=1)
    """Numbers at each latent position."""

    codebook_size: int | None = Field(None, ge=2, le=16_384)
    """Vectors of `latent_channels` numbers, of which each latent position is one: images become tokens. None for
    a KL autoencoder, whose latents are continuous."""

    norm_groups: int = Field(8, ge=1)
    """Groups of the group norms; must divide the channels of every level."""

    @model_validator(mode="after")
    def _groups_divide(self) -> "AutoencoderConfig":
        wrong = [width for width in self.block_channels if width < 1 or width % self.norm_groups]
        if wrong or not self.block_channels:
            raise ValueError(
                f"block_channels must be multiples of norm_groups {self.norm_groups}, "
                f"got {list(self.block_channels)}"
            )
        if self.layers_per_block == 0 and len(set(self.block_channels)) > 1:
            raise ValueError(
                "block_channels must be equal with layers_per_block 0 (residual layers are what changes the "
                f"number), got {list(self.block_channels)}"
            )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels along the side of one latent position."""
        return int(2 ** (len(self.block_channels) - 1))


class LoadAutoencoderConfig(Config):
    """An autoencoder made elsewhere, taken as it is."""

    path: Location
    """A folder in the diffusers layout of an `AutoencoderKL` or a `VQModel`: `config.json` and its safetensors."""

    calibration_images: int = Field(1024, ge=2)
    """The first rows by key: latent statistics are measured on these."""


def list_files(config: LoadAutoencoderConfig) -> list[dict[str, Any]]:
    """What stands in for `path` in the identity: the content of its files."""
    folder = Path(config.path).expanduser()
    check_layout(folder)
    return [{"name": name, "sha256": sha256_file(folder / name)} for name in LAYOUT]


def check_layout(folder: Path) -> None:
    """That the files of `LAYOUT` are there.

    Raises:
        ArtifactError: With the name of one that is not.
    """
    for name in LAYOUT:
        if not (folder / name).is_file():
            raise ArtifactError(
                f"{folder}: holds no {name}; an autoencoder is a folder in the diffusers layout, with "
                f"{' and '.join(LAYOUT)}"
            )
