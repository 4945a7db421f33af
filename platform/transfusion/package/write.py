"""Writing a package: every file first, then `config.json` with their digests."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfusion.autoencoder.autoencoder import FILES
from transfusion.model.weights_file import Tensors, like_of, write_tensors
from transfusion.package.card import model_card
from transfusion.package.format import (
    AUTOENCODER,
    CARD,
    CONFIG,
    TOKENIZER,
    WEIGHT_FILES,
    PackageConfig,
    Weights,
)
from transfusion.storage.store import sha256_file


def write_package(
    folder: Path,
    *,
    config: PackageConfig,
    weights: Mapping[Weights, Tensors],
    tokenizer: bytes,
    autoencoder: Path,
) -> PackageConfig:
    """Fills an empty folder; the same inputs give the same bytes.

    Args:
        config: All but `files`, which is filled in here.
        weights: Parameters by name, for each file of weights; lazy ones are held one at a time.
        autoencoder: A folder in the diffusers layout with its latent statistics.

    Returns:
        The config as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_parameters = 0
    for name, parameters in weights.items():
        num_parameters = sum(tensor.numel() for tensor in like_of(parameters).values())
        write_tensors(folder / WEIGHT_FILES[name], parameters)
    (folder / TOKENIZER).write_bytes(tokenizer)
    # Not the folder whole: durations in the metrics beside them would give a model other bytes every time.
    (folder / AUTOENCODER).mkdir()
    for part in FILES:
        shutil.copyfile(autoencoder / part, folder / AUTOENCODER / part)
    (folder / CARD).write_text(model_card(config, num_parameters=num_parameters), encoding="utf-8")
    places = sorted(place for place in folder.rglob("*") if place.is_file())
    files = {
        place.relative_to(folder).as_posix(): sha256_file(place)
        for place in places
        if place != folder / CONFIG
    }
    written = config.model_copy(update={"files": files})
    (folder / CONFIG).write_text(_text(written.resolved()), encoding="utf-8")
    return written


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
