"""What training starts from, as a plan sees it: which folder, and what it holds. No torch.

`transfusion.train.pretrained` reads the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from transfusion.errors import ArtifactError
from transfusion.storage.store import sha256_file
from transfusion.train.config import TrainConfig

ROLE = "init_from"
"""The input that stands for the field of the same name."""

DESCRIPTION = "config.json"
"""Of a package and of a Llama-family checkpoint alike."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def is_package(folder: Path) -> bool:
    """Whether a folder is a model package, and not a checkpoint in the layout of Hugging Face.

    Raises:
        ArtifactError: It is neither.
    """
    try:
        described = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"init_from {folder}: must be a model package, or a Llama-family checkpoint in the layout of Hugging "
            f"Face; its {DESCRIPTION} cannot be read: {error}"
        ) from error
    found = described.get("format", "") if isinstance(described, dict) else ""
    return str(found).startswith("transfusion.package/")


def list_files(config: TrainConfig) -> list[dict[str, str]] | None:
    """What stands in for `init_from` in the identity: the content of its files; None where there is none.

    Of a package its config is enough, which holds the sha256 of all else.

    Raises:
        ArtifactError: The folder is not what training can start from.
    """
    if config.init_from is None:
        return None
    folder = Path(config.init_from).expanduser()
    places = [folder / DESCRIPTION]
    if not is_package(folder):
        places += sorted(place for pattern in WEIGHTS for place in folder.glob(pattern))
    return [{"name": place.name, "sha256": sha256_file(place)} for place in places]


def faults(config: TrainConfig, roles: Mapping[str, str]) -> list[str]:
    """What is at fault between the settings of a start, as `.field: rule`."""
    starts = config.init_from is not None or ROLE in roles
    found = []
    if config.init_from is not None and ROLE in roles:
        found.append(
            f".init_from: is a folder, and the stage has an input {ROLE!r} too: only one can be started from"
        )
    if config.lr_scale_pretrained != 1 and not starts:
        found.append(
            f".lr_scale_pretrained: must be 1 where training starts from nothing, got "
            f"{config.lr_scale_pretrained:g}; name what to start from in init_from"
        )
    if config.frozen_text and not starts:
        found.append(".frozen_text: needs weights to freeze; name what to start from in init_from")
    if config.frozen_text and config.model.weights != "by_modality":
        found.append(
            ".frozen_text: needs weights beside the frozen ones: set model.weights to by_modality, got "
            f"{config.model.weights!r}"
        )
    return found
