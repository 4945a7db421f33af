"""The layout of a package and its `config.json`, which names every other file by its sha256.

config.json             this model: what it is, how to sample it, what it was made from
model.safetensors       weights as trained
ema.safetensors         their moving average, what is sampled unless asked otherwise
tokenizer.model         sentencepiece
autoencoder/            diffusers layout, and latent_statistics.json
README.md               the model card
"""

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from transfusion.config import Config, validate
from transfusion.diffusion.config import (
    NoiseConfig,
    ScheduleName,
    TargetName,
    VarianceName,
    check_solver,
)
from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.package.config import SamplingDefaults
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

FORMAT = "transfusion.package/1"
CONFIG, CARD, TOKENIZER, AUTOENCODER = (
    "config.json",
    "README.md",
    "tokenizer.model",
    "autoencoder",
)

Weights = Literal["ema", "raw"]
WEIGHT_FILES: dict[Weights, str] = {"ema": "ema.safetensors", "raw": "model.safetensors"}


class LineageEntry(Config):
    """One artifact that the model was made from, directly or not."""

    stage: str
    """Its name in the job."""
    uses: str
    fingerprint: str
    digest: str
    """Digest of its content."""
    inputs: dict[str, str] = {}
    """Role to fingerprint."""
    config: dict[str, JsonValue] = {}


class PackageConfig(Config):
    """`config.json`."""

    format: Literal["transfusion.package/1"] = "transfusion.package/1"
    name: str = Field(min_length=1)
    """What the model calls itself: its architecture and the beginning of its fingerprint."""
    model: ModelConfig
    num_pieces: int = Field(ge=1)
    """Pieces of the tokenizer; the special ids follow them."""
    num_codes: int = Field(0, ge=0, exclude_if=lambda number: number == 0)
    """Ids of codes behind the special ids, where images are tokens: one for each latent position, row by row."""
    special_ids: dict[str, int]
    """pad, bos, eos, boi, eoi: for readers that are not this program."""
    layout: SequenceLayout
    sequence_length: int = Field(ge=2)
    """Positions that the model was trained on: the longest context."""
    latent_channels: int = Field(ge=1)
    latent_height: int = Field(ge=1)
    latent_width: int = Field(ge=1)
    image_size_px: int = Field(ge=1)
    schedule: ScheduleName
    num_timesteps: int = Field(ge=2)
    # Left out where they are the default: packages then read as they always did.
    target: TargetName = Field("epsilon", exclude_if=lambda target: target == "epsilon")
    timestep_shift: float = Field(1.0, exclude_if=lambda shift: shift == 1)
    variance: VarianceName = Field("fixed", exclude_if=lambda variance: variance == "fixed")
    sampling: SamplingDefaults
    lineage: list[LineageEntry] = []
    """Nearest first."""
    files: dict[str, str]
    """sha256 of every other file."""

    @field_validator("files")
    @classmethod
    def _stays_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name.split("/"):
                raise ValueError(f"a file name must stay inside the package, got {name!r}")
        return files

    @model_validator(mode="after")
    def _noise_can_be_taken_away(self) -> "PackageConfig":
        check_solver(self.sampling.solver, schedule=self.noise.schedule)
        return self

    @property
    def trained_by(self) -> str | None:
        """Fingerprint of the training run that the weights are of: the nearest in the lineage."""
        runs = (entry.fingerprint for entry in self.lineage if entry.uses == "transfusion.train")
        return next(runs, None)

    @property
    def noise(self) -> NoiseConfig:
        """How the model was taught to see noise."""
        return NoiseConfig(**{name: getattr(self, name) for name in NoiseConfig.model_fields})

    @property
    def special(self) -> SpecialIds:
        """The special ids."""
        return SpecialIds.after(self.num_pieces, num_codes=self.num_codes)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (self.latent_channels, self.latent_height, self.latent_width)

    @property
    def num_patches(self) -> int:
        """Positions of an image between BOI and EOI."""
        patches = self.layout.num_patches(self.latent_height, self.latent_width)
        return self.layout.block_length(patches)


def read_config(folder: Path) -> PackageConfig:
    """The config of a package.

    Raises:
        ArtifactError: It is missing, of another format, or not valid; every fault is named.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: is not a model package: it holds no {CONFIG}; "
            "give the folder that the package stage made"
        )
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: is not JSON: {error}") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"{path}: format must be {FORMAT!r}, got {found!r}; export the model again"
        )
    config, faults = validate(PackageConfig, values, where=str(path))
    if config is None:
        raise ArtifactError("\n".join(faults))
    expected = SpecialIds.after(config.num_pieces)
    if any(getattr(expected, name, None) != token for name, token in config.special_ids.items()):
        raise ArtifactError(
            f"{path}: special_ids must follow the {config.num_pieces} pieces, got {config.special_ids}"
        )
    return config
