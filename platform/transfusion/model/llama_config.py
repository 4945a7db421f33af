"""What the `config.json` of a Llama-family checkpoint says, as a config of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

FAMILY = ("llama", "mistral")
"""Values of `model_type` that are this block."""


def read_json(path: Path) -> dict[str, Any]:
    """A file of a checkpoint.

    Raises:
        ArtifactError: It is missing, or no JSON mapping.
    """
    if not path.is_file():
        raise ArtifactError(
            f"{path.parent}: holds no {path.name}; a checkpoint is a folder in the layout of Hugging Face, with "
            f"{CONFIG} and {SINGLE}"
        )
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: must be a mapping of keys to values")
    return values


def transformer_config(path: Path, values: Mapping[str, Any]) -> ModelConfig:
    """The transformer that a checkpoint's config describes; how images come in is left at the defaults.

    Args:
        path: Where the values were read, for messages.

    Raises:
        ArtifactError: It computes something else than our blocks, or is not valid; every fault is named.
    """
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    heads, dim = values.get("num_attention_heads"), values.get("hidden_size")
    must: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "model_type": (values.get("model_type"), FAMILY),
        "hidden_act": (values.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (values.get("attention_bias", False), (False,)),
        "mlp_bias": (values.get("mlp_bias", False), (False,)),
        "sliding_window": (values.get("sliding_window"), (None,)),
        "the type of the rotary embedding": (
            rope.get("rope_type", rope.get("type", "default")),
            ("default",),
        ),
    }
    faults = [
        f"{path}: {name} must be {' or '.join(repr(one) for one in known)}, got {found!r}: another "
        "transformer than ours"
        for name, (found, known) in must.items()
        if found not in known
    ]
    head_dim = values.get("head_dim")
    if head_dim and isinstance(heads, int) and isinstance(dim, int) and heads * head_dim != dim:
        faults.append(
            f"{path}: head_dim must be hidden_size / num_attention_heads, got {head_dim} for {dim} / {heads}"
        )
    if not isinstance(values.get("vocab_size"), int):
        faults.append(
            f"{path}: vocab_size must be a whole number, got {values.get('vocab_size')!r}"
        )
    ours = {
        "dim": dim,
        "depth": values.get("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads"),
        "ffn_dim": values.get("intermediate_size"),
        "rope_theta": rope.get("rope_theta", values.get("rope_theta", 10_000.0)),
        "norm_eps": values.get("rms_norm_eps", 1e-6),
    }
    config, more = validate(ModelConfig, ours, where=f"{path}: as our model")
    if config is None or faults:
        raise ArtifactError("\n".join([*faults, *more]))
    return config
