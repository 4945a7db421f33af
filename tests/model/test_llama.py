"""Checkpoints that `transformers` writes: the same logits, and a clear word on those that are something else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from transfusion.errors import ArtifactError
from transfusion.model.attention import plan_attention
from transfusion.model.llama import LlamaCheckpoint
from transfusion.model.llama_config import transformer_config
from transfusion.model.presets import preset
from transfusion.model.transformer import TransfusionModel
from transfusion.sequence.special import SpecialIds
from transfusion.train.pretrained import Begun, Start, begin

VOCABULARY = 50
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
VARIANTS = {
    "plain": {},
    "gqa": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "theta": {"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}},
}


def written(folder: Path, *, shard_size: str = "1GB", **options) -> LlamaForCausalLM:
    """A random model with weights large enough that every path matters, saved."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | options), initializer_range=0.15)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def ours(folder: Path, *, vocab_size: int = VOCABULARY + 5, **changed) -> TransfusionModel:
    config = LlamaCheckpoint.open(folder).config.model_copy(update=changed)
    model = TransfusionModel(config, vocab_size=vocab_size, latent_channels=4)
    model.init_weights(seed=1)
    return model.eval()


def start(model: TransfusionModel, folder: Path) -> Begun:
    """As training starts from it."""
    return begin(model, Start(folder), special=SpecialIds.after(model.vocab_size - 5))


@torch.no_grad()
def logits(model: TransfusionModel, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    attention = plan_attention(torch.zeros_like(positions), positions + 1, query_block=16)
    hidden = model.transform(model.embed_tokens(ids), position_ids=positions, attention=attention)
    return model.logits(hidden.flatten(0, 1)).unflatten(0, ids.shape)


def difference(model, theirs) -> float:
    ids = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(ids).logits
    assert expected.std() > 0.5
    return float((logits(model, ids)[..., :VOCABULARY] - expected).abs().max())


@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_gives_the_logits_of_transformers(tmp_path, variant, shard_size):
    theirs = written(tmp_path, shard_size=shard_size, **VARIANTS[variant])
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "60KB")
    model = ours(tmp_path)
    assert difference(model, theirs) > 0.1
    start(model, tmp_path)
    assert difference(model, theirs) < 1e-4


def test_mistral_is_of_the_family(tmp_path):
    torch.manual_seed(0)
    config = MistralConfig(
        **SHAPE, num_key_value_heads=2, sliding_window=None, initializer_range=0.15
    )
    theirs = MistralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model = ours(tmp_path)
    start(model, tmp_path)
    assert difference(model, theirs) < 1e-4


def test_what_the_checkpoint_has_not_keeps_its_weights(tmp_path):
    theirs = written(tmp_path, num_key_value_heads=2)
    model = ours(tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    taken = start(model, tmp_path).loaded
    after = model.state_dict()
    for name, weight in before.items():
        if name not in taken:
            assert name.startswith(("down.", "up.")), name
            torch.testing.assert_close(after[name], weight, atol=0, rtol=0)
    special = SpecialIds.after(VOCABULARY)
    new = [special.pad, special.boi, special.eoi]
    for name in ("embedding.weight", "head.weight"):
        # New rows are as long as its own, whatever ours are drawn at.
        lengths = after[name].norm(dim=1)
        assert float(lengths[new].mean() / lengths[:VOCABULARY].mean()) == pytest.approx(1, abs=0.2)
        # Its own begin and end of a document, by its config.
        named = after[name][[theirs.config.bos_token_id, theirs.config.eos_token_id]]
        assert torch.equal(after[name][[special.bos, special.eos]], named)
    embedding = theirs.get_input_embeddings().weight
    torch.testing.assert_close(after["embedding.weight"][:VOCABULARY], embedding, atol=0, rtol=0)


def test_a_checkpoint_in_bf16_is_read_at_the_precision_of_the_model(tmp_path):
    written(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = ours(tmp_path)
    start(model, tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert difference(model, theirs) < 1e-4


def test_old_configs_name_the_rotation_otherwise(tmp_path):
    theirs = written(tmp_path, **VARIANTS["theta"])
    edit(tmp_path, rope_parameters=None, rope_theta=500_000.0, rope_scaling=None, head_dim=None)
    model = ours(tmp_path)
    start(model, tmp_path)
    assert difference(model, theirs) < 1e-4


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    written(folder, num_key_value_heads=2)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, **changes) -> None:
    place = folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "model_type must be 'llama' or 'mistral', got 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"sliding_window": 16}, "sliding_window must be None, got 16"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            "type of the rotary embedding must be 'default', got 'llama3'",
        ),
        ({"head_dim": 8}, "head_dim must be hidden_size / num_attention_heads, got 8 for 64 / 4"),
        ({"num_key_value_heads": 3}, "num_kv_heads must divide num_heads 4, got 3"),
        ({"hidden_size": "64"}, "dim: .*got '64'"),
        ({"vocab_size": None}, "vocab_size must be a whole number, got None"),
        ({"intermediate_size": 128}, r"gate_proj.weight is \(96, 64\), .* must be \(128, 64\)"),
        ({"num_hidden_layers": 4}, "holds no model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "9 tensors have no place here, such as model.layers.2.input"),
    ],
)
def test_a_checkpoint_that_is_something_else_is_refused(folder, changes, words):
    edit(folder, **changes)
    with pytest.raises(ArtifactError, match=words):
        LlamaCheckpoint.open(folder)


def test_all_that_is_wrong_is_told_at_once(folder):
    edit(folder, mlp_bias=True, hidden_act="relu")
    with pytest.raises(ArtifactError, match=r"hidden_act(.|\n)*mlp_bias"):
        LlamaCheckpoint.open(folder)


def test_a_model_of_another_size_is_refused(folder):
    model = ours(folder, vocab_size=40, num_kv_heads=4, rope_theta=5.0)
    with pytest.raises(ArtifactError) as caught:
        start(model, folder)
    for told in (
        "its kv_heads is 2, the model's 4",
        "its rope_theta is",
        "has 50 rows for a vocabulary of 40; use its own tokenizer",
        "blocks.0.attention.qkv.weight is (128, 64), the model's (192, 64)",
    ):
        assert told in str(caught.value)


def test_files_that_are_missing_or_cut_are_named(folder, saved, tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no config.json"):
        LlamaCheckpoint.open(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ArtifactError, match=r"model.safetensors: is missing, cut, or"):
        LlamaCheckpoint.open(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(whole)
    with pytest.raises(ArtifactError, match=r"pytorch_model.bin is a pickle, which is not read"):
        LlamaCheckpoint.open(folder)
    index = folder / "model.safetensors.index.json"
    (folder / "part.safetensors").write_bytes(whole)
    names = [*LlamaCheckpoint.open(saved).files, "model.layers.0.mlp.spare.weight"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    with pytest.raises(ArtifactError, match="1 tensors have no place here"):
        LlamaCheckpoint.open(folder)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ArtifactError, match="must name a file of the folder"):
        LlamaCheckpoint.open(folder)


def test_an_index_that_names_a_tensor_its_file_has_not_is_told(tmp_path):
    written(tmp_path, shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["model.norm.weight"] = weight_map["model.embed_tokens.weight"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ArtifactError, match="or not what its index says"):
        LlamaCheckpoint.open(tmp_path)


def test_the_preset_is_tinyllamas_shape(tmp_path):
    """By its published config; nothing is loaded."""
    values = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
    }
    assert transformer_config(tmp_path, values) == preset("TinyLlama-1.1B")
