"""Loading a package: verified first, safetensors only, on one device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.errors import ArtifactError
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import (
    AUTOENCODER,
    TOKENIZER,
    WEIGHT_FILES,
    PackageConfig,
    Weights,
    read_config,
)
from transfusion.package.verify import package_digest, verify_package
from transfusion.tokenizer.tokenizer import Tokenizer

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class PackageParts:
    """All of a package but its model: what prompts and answers are made of."""

    tokenizer: Tokenizer
    autoencoder: Autoencoder
    config: PackageConfig
    digest: str
    """Of the whole package."""


@dataclass(frozen=True, kw_only=True)
class Package(PackageParts):
    """A model with all that is needed to sample from it."""

    model: TransfusionModel

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def load_package(
    folder: Path,
    *,
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> Package:
    """Loads a package for sampling.

    Raises:
        ArtifactError: A file is missing, was altered or does not fit the config; it is named.
    """
    parts = load_parts(folder, device=device)
    model = load_model(folder, weights=weights, device=device, precision=precision)
    return Package(
        model=model,
        tokenizer=parts.tokenizer,
        autoencoder=parts.autoencoder,
        config=parts.config,
        digest=parts.digest,
    )


def load_parts(folder: Path, *, device: torch.device | str = "cpu") -> PackageParts:
    """Verifies a package, its weights too, and loads all but its model.

    Raises:
        ArtifactError: A file is missing, was altered or does not fit the config; it is named.
    """
    config = verify_package(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.num_pieces != config.num_pieces:
        raise ArtifactError(
            f"{folder / TOKENIZER}: has {tokenizer.num_pieces} pieces, "
            f"the config says {config.num_pieces}"
        )
    autoencoder = Autoencoder.load(folder / AUTOENCODER, device=device)
    shape = autoencoder.latent_shape(config.image_size_px, config.image_size_px)
    if config.num_codes:
        # A code is one number, whatever its vector.
        shape = (1, *shape[1:])
    if shape != config.latent_shape:
        raise ArtifactError(
            f"{folder / AUTOENCODER}: makes latents of {shape}, the config says {config.latent_shape}"
        )
    if config.num_codes and autoencoder.num_codes != config.num_codes:
        raise ArtifactError(
            f"{folder / AUTOENCODER}: has {autoencoder.num_codes or 'no'} codes, the config says "
            f"{config.num_codes}"
        )
    return PackageParts(
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        config=config,
        digest=package_digest(folder),
    )


def load_model(
    folder: Path,
    *,
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> TransfusionModel:
    """The model of a package that was verified, or is being verified at the same time.

    Raises:
        ArtifactError: There are no such weights, or they do not fit the config.
    """
    from safetensors.torch import load_file

    config = read_config(folder)
    place = folder / WEIGHT_FILES[weights]
    if not place.is_file():
        raise ArtifactError(f"{place}: the package holds no such weights")
    with torch.device("meta"):
        model = TransfusionModel(
            config.model,
            vocab_size=config.special.vocab_size,
            latent_channels=config.latent_channels,
            variance=config.variance,
        )
    try:
        state = load_file(place, device=str(device))
        model.load_state_dict(state, assign=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{place}: does not fit the config: {reason}") from error
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return model.to(dtype).eval().requires_grad_(False)
