"""Config of autoencoder training."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.config import Location
from transfusion.errors import ArtifactError
from transfusion.train.loop_config import LoopConfig


class TrainAutoencoderConfig(LoopConfig):
    """Pixels to an autoencoder: mean absolute error, and a small KL term."""

    network: AutoencoderConfig = AutoencoderConfig()
    """Architecture; ignored with `pretrained`, which brings its own."""

    pretrained: Location | None = None
    """A folder in the diffusers layout of an AutoencoderKL to start from; with `steps: 0` it is taken as it
    is, and only the statistics of its latents are measured."""

    batch_size: int = Field(32, ge=1)
    """Images a step, over all workers."""

    lanes: int = Field(2, ge=1)
    """Equal parts of a batch; at most so many workers share the work."""

    kl_weight: float = Field(1e-6, ge=0)
    """Weight of the KL term, summed over a latent, against the absolute error, summed over the pixels."""

    heldout_images: int = Field(256, ge=1)
    """The last rows by key: never trained on, used for validation and for the published quality."""

    calibration_images: int = Field(1024, ge=2)
    """The first rows by key: latent statistics are measured on these."""

    @model_validator(mode="after")
    def _lanes_divide(self) -> "TrainAutoencoderConfig":
        if self.batch_size % self.lanes:
            raise ValueError(
                f"batch_size must be a multiple of lanes {self.lanes}, got {self.batch_size}; "
                f"nearest valid: {max(round(self.batch_size / self.lanes), 1) * self.lanes}"
            )
        if self.steps == 0 and self.pretrained is None:
            raise ValueError("steps must be at least 1, or `pretrained` must name an autoencoder")
        return self


def list_pretrained(config: TrainAutoencoderConfig) -> list[dict[str, Any]]:
    """What stands in for `pretrained` in the identity: its files' content."""
    if config.pretrained is None:
        return []
    folder = Path(config.pretrained).expanduser()
    rows = []
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        place = folder / name
        if not place.is_file():
            raise ArtifactError(
                f"{folder}: holds no {name}; an autoencoder is a folder in the diffusers layout"
            )
        with place.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append({"name": name, "sha256": sha256})
    return rows
