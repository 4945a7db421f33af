"""What training starts from, as a plan sees it: which folder, and what it holds. No torch.

`transfusion.train.pretrained` reads the weights.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.storage.store import sha256_file
from transfusion.train.config import TrainConfig

ROLE = "init_from"
"""The input that stands for the field of the same name."""

DESCRIPTION = "config.json"
"""Of a package and of a Llama-family checkpoint alike."""

TRANSFORMER = (
    "dim", "depth", "num_heads", "kv_heads", "hidden_dim", "rope_theta", "norm_eps", "qk_norm", "norm",
)  # fmt: skip
"""What must be the same: the weights would not fit, or fit and compute something else."""

IMAGES = ("patch_size", "adapter", "time_embedding", "image_head", "patch_positions")
"""The same for how images enter and leave: of a package, which has weights for that."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def is_package(folder: Path) -> bool:
    """Whether a folder is a model package, and not a checkpoint in the layout of Hugging Face.

    Raises:
        ArtifactError: It is neither.
    """
    try:
        described = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError) as error:
        below = next((place.parent for place in sorted(folder.glob(f"*/{DESCRIPTION}"))), None)
        raise ArtifactError(
            f"init_from {folder}: must be a model package, or a Llama-family checkpoint in the layout of Hugging "
            f"Face; its {DESCRIPTION} cannot be read: {error}{f'; did you mean {below}?' if below else ''}"
        ) from error
    found = described.get("format", "") if isinstance(described, dict) else ""
    return str(found).startswith("transfusion.package/")


def differing(theirs: ModelConfig, ours: ModelConfig, fields: Sequence[str]) -> list[str]:
    """What a model cannot take over from another, of the fields that are compared."""
    return [
        f"its {field} is {getattr(theirs, field)!r}, the model's {getattr(ours, field)!r}; they must be the same"
        for field in fields
        if getattr(theirs, field) != getattr(ours, field)
    ]


def package_faults(config: TrainConfig, theirs: ModelConfig) -> list[str]:
    """The same of a package, as `.init_from: rule`."""
    fields = TRANSFORMER + IMAGES if config.init_strict else TRANSFORMER
    return [f".init_from: {fault}" for fault in differing(theirs, config.model, fields)]


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
    if config.init_from is not None and (theirs := _packaged(Path(config.init_from).expanduser())):
        found += package_faults(config, theirs)
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


def _packaged(folder: Path) -> ModelConfig | None:
    """The model of a package; None of a folder that is none, of which others tell."""
    try:
        if not is_package(folder):
            return None
        described = json.loads((folder / DESCRIPTION).read_bytes())
        return ModelConfig.model_validate_json(json.dumps(described["model"]))
    except (ArtifactError, KeyError, ValidationError):
        return None
