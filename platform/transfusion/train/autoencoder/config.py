"""Config of autoencoder training."""

from pydantic import Field, model_validator

from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.train.loop_config import LoopConfig


class TrainAutoencoderConfig(LoopConfig):
    """Pixels to an autoencoder: mean absolute error, and a small KL term or the codebook's."""

    network: AutoencoderConfig = AutoencoderConfig()

    batch_size: int = Field(32, ge=1)
    """Images a step, over all workers."""

    lanes: int = Field(2, ge=1)
    """Equal parts of a batch; at most so many workers share the work."""

    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Limit of the decay of the averaged weights, which are what comes out: a longer memory holds on to worse
    weights of a short run (29.8 against 30.5 dB with 0.999, after 1,500 steps on drawn shapes)."""

    kl_weight: float = Field(1e-6, ge=0)
    """Weight of the KL term, summed over a latent, against the absolute error, summed over the pixels."""

    codebook_weight: float = Field(1.0, gt=0)
    """Of the codes' distance from what the encoder makes, a mean over the latent, against the absolute error, a
    mean over the pixels; where the network has a codebook."""

    commitment: float = Field(0.25, ge=0)
    """Part of that weight with which the encoder, too, is drawn to its codes."""

    restart_codes_every_steps: int = Field(0, ge=0)
    """So often, codes that were not taken since move to where the encoder puts images; 0 for never. The last fifth
    of a run moves none."""

    heldout_images: int = Field(256, ge=1)
    """The last rows by key: never trained on, used for validation and for the published quality."""

    calibration_images: int = Field(1024, ge=2)
    """The first rows by key: latent statistics are measured on these."""

    @model_validator(mode="after")
    def _codes_are_there(self) -> "TrainAutoencoderConfig":
        if self.restart_codes_every_steps and self.network.codebook_size is None:
            raise ValueError(
                "restart_codes_every_steps is of a codebook, and there is none; set network.codebook_size"
            )
        return self

    @model_validator(mode="after")
    def _lanes_divide(self) -> "TrainAutoencoderConfig":
        if self.batch_size % self.lanes:
            raise ValueError(
                f"batch_size must be a multiple of lanes {self.lanes}, got {self.batch_size}; "
                f"nearest valid: {max(round(self.batch_size / self.lanes), 1) * self.lanes}"
            )
        return self
