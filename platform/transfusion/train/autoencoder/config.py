"""Config of autoencoder training."""

from pathlib import Path

from pydantic import Field, model_validator

from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.config import JSON, Config, Location
from transfusion.errors import ArtifactError
from transfusion.storage.store import sha256_file
from transfusion.train.loop_config import LoopConfig


class PerceptualConfig(Config):
    """Distance in the features of VGG-16, beside that of pixels."""

    path: Location
    """A safetensors file with torchvision's names; see `perception`. Nothing is fetched."""

    weight: float = Field(1.0, gt=0)
    """Against the mean absolute error."""


class DiscriminatorConfig(Config):
    """A second network that tells reconstructions from images, patch by patch, and is trained beside."""

    from_step: int = Field(50_000, ge=0)
    """Both losses count from here on: reconstructions must be worth a look first."""

    weight: float = Field(0.5, gt=0)
    """Weight of the adversarial loss, once it is scaled to pull as hard as the other losses."""

    channels: int = Field(64, ge=8, multiple_of=8)
    """Of its first layer; each further one has twice as many, up to eight times."""

    layers: int = Field(3, ge=1)
    """With three, a patch is 70 px; with one, 16 px."""


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

    quantize_from_step: int = Field(0, ge=0)
    """Before it the decoder hears what the encoder makes, and codes only follow; at it all codes move to where the
    encoder puts images. With codes from the first step an encoder may settle for what the first ones tell apart,
    though in the end all are taken (22.0 against 29.8 dB with 400 of 1,500 steps before, on drawn textures; on
    another machine, and with other last bits, it did not)."""

    perceptual: PerceptualConfig | None = None
    """The paper has it with weight 1, and another on MoCo's features."""

    discriminator: DiscriminatorConfig | None = None
    """The paper has it from step 50,000 with weight 0.5. It shares the optimizer's settings and the limit of the
    gradient's norm."""

    heldout_images: int = Field(256, ge=1)
    """The last rows by key: never trained on, used for validation and for the published quality."""

    calibration_images: int = Field(1024, ge=2)
    """The first rows by key: latent statistics are measured on these."""

    @model_validator(mode="after")
    def _convolutions_are_fp32(self) -> "TrainAutoencoderConfig":
        if self.precision == "bf16":
            raise ValueError(
                "precision bf16 is not for autoencoders; fp32_bf16_inner multiplies in lower precision where the "
                "hardware is fast at it"
            )
        return self

    @model_validator(mode="after")
    def _codes_are_there(self) -> "TrainAutoencoderConfig":
        for name in ("restart_codes_every_steps", "quantize_from_step"):
            if getattr(self, name) and self.network.codebook_size is None:
                raise ValueError(
                    f"{name} is of a codebook, and there is none; set network.codebook_size"
                )
        if self.quantize_from_step >= self.steps:
            raise ValueError(
                f"quantize_from_step must be below steps {self.steps}, got {self.quantize_from_step}: codes that "
                "are never used are not learned"
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


def raw_input(config: TrainAutoencoderConfig) -> list[JSON] | None:
    """The content of the perceptual loss's weights, which stands for their place in the identity."""
    if config.perceptual is None:
        return None
    place = Path(config.perceptual.path).expanduser()
    if not place.is_file():
        raise ArtifactError(
            f"{place}: there is no such file; the perceptual loss needs the weights of VGG-16 there "
            "(safetensors, torchvision's names), or leave perceptual out"
        )
    return [sha256_file(place)]
