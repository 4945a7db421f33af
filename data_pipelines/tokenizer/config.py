"""Options of the tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from transfusion.config import JSON, Config, Location
from transfusion.errors import ArtifactError
from transfusion.storage.store import sha256_file


class TokenizerConfig(Config):
    """A sentencepiece tokenizer: trained on the text of the inputs, or loaded from `path`."""

    path: Location | None = None
    """A sentencepiece `.model`; then nothing is trained and the other options have no effect."""

    vocab_size: int = Field(default=8192, ge=300)
    """Pieces, 256 of them bytes; the special tokens come on top."""

    algorithm: Literal["bpe", "unigram"] = "bpe"

    character_coverage: float = Field(default=0.9995, gt=0, le=1)
    """Share of the characters that get a piece; the others are spelt in bytes."""

    max_training_mib: float = Field(default=64.0, gt=0)
    """Text to train on, shared equally by the inputs."""

    max_documents: int = Field(default=1_000_000, ge=1)
    """Documents to train on, shared equally by the inputs."""


def raw_input(config: TokenizerConfig) -> list[JSON]:
    """The content of a loaded model, which stands for its place in the identity."""
    if config.path is None:
        return []
    place = Path(config.path).expanduser()
    if not place.is_file():
        raise ArtifactError(
            f"{config.path}: there is no such file; expected a sentencepiece .model"
        )
    return [sha256_file(place)]


def check(config: TokenizerConfig, roles: Mapping[str, str]) -> list[str]:
    """A tokenizer needs text or a model, not both."""
    if config.path is None and not roles:
        return [
            ".path: there is nothing to train on; name inputs that are listings, or the path of a .model"
        ]
    if config.path is not None and roles:
        return [".path: a loaded model is not trained; take the inputs away, or the path"]
    return []
