"""The architecture of an autoencoder that is trained here."""

from pydantic import Field, model_validator

from transfusion.config import Config


class AutoencoderConfig(Config):
    """A convolutional KL autoencoder (diffusers' `AutoencoderKL`)."""

    block_channels: tuple[int, ...] = (16, 32, 32)
    """Channels of each level, the finest first; every level after the first halves the side."""

    layers_per_block: int = Field(1, ge=1)
    """Residual layers a level of the encoder; the decoder has one more."""

    latent_channels: int = Field(8, ge=1)

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
        return self

    @property
    def downsampling(self) -> int:
        """Pixels along the side of one latent position."""
        return int(2 ** (len(self.block_channels) - 1))
