"""Body of the stage that writes a run's transformer as a Llama checkpoint: `model.llama` the other way round."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.publish import publish_folder
from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.model.llama import llama_tensors
from transfusion.model.llama_config import CONFIG, SINGLE
from transfusion.package.format import TOKENIZER, WEIGHT_FILES
from transfusion.package.llama import ToLlamaConfig
from transfusion.sequence.special import SpecialIds
from transfusion.stage import Made, StageContext


def run(config: ToLlamaConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """Leaves out how images come in and go out."""
    from safetensors.torch import load_file

    trained = inputs["run"]
    model, faults = validate(ModelConfig, trained.manifest.config["model"], where="run: model")
    if model is None:
        raise ArtifactError("\n".join(faults))
    plan = read_mixture(trained.input("mixture"))
    folder = context.scratch / "llama"
    write_llama(
        folder,
        model,
        load_file(trained.local(WEIGHT_FILES[config.weights])),
        special=SpecialIds.after(
            int(inputs["tokenizer"].metadata["num_pieces"]), num_codes=plan.num_codes
        ),
        sequence_length=plan.sequence_length,
    )
    shutil.copyfile(inputs["tokenizer"].local(TOKENIZER), folder / TOKENIZER)
    return Made(files=publish_folder(context.store, context.folder, folder))


def write_llama(
    folder: Path,
    model: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    special: SpecialIds,
    sequence_length: int,
) -> None:
    """Writes `config.json` and the weights; `transformers` and `LlamaCheckpoint` read them.

    Raises:
        ArtifactError: The model computes something that no Llama does, or has another vocabulary.
    """
    from safetensors.torch import save_file

    wanted = {"qk_norm": "none", "norm": "pre", "weights": "shared"}
    faults = [
        f"package.llama: model.{field} must be {value!r}, which is Llama's, got {found!r}"
        for field, value in wanted.items()
        if (found := getattr(model, field)) != value
    ]
    rows = len(weights["embedding.weight"])
    if rows != special.vocab_size:
        faults.append(
            f"package.llama: the run has {rows} ids and its tokenizer {special.vocab_size} with the special ones; "
            "name the tokenizer that the run was trained with"
        )
    if faults:
        raise ArtifactError("\n".join(faults))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in _named(model, weights)}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.hidden_dim,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "max_position_embeddings": sequence_length,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "dtype": "float32",
    }
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _named(model: ModelConfig, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our weights under their names, what is one matrix here cut in its parts."""
    vocab_size = len(weights["embedding.weight"])
    for ours, theirs in llama_tensors(model, vocab_size=vocab_size, tied=False).items():
        parts = weights[ours].split([shape[0] for shape in theirs.values()])
        yield from zip(theirs, parts, strict=True)
