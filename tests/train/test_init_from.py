"""Training from weights that are there: what is taken, what is refused, what stays."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import LATENT, NUM_PIECES, model_config, tiny_package, write_llama
from tests.train.worlds import SPECIAL, MadeUpSource, config
from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.load import load_package
from transfusion.sequence.special import SpecialIds
from transfusion.train.config import TrainConfig
from transfusion.train.init_from import faults, list_files
from transfusion.train.parallel import parameter_groups, reshard
from transfusion.train.pretrained import Start, begin
from transfusion.train.state import TrainingState
from transfusion.train.step import TransformerTrainee


def fresh(special: SpecialIds = SPECIAL, **options: Any) -> TransfusionModel:
    model = TransfusionModel(
        model_config(**options), vocab_size=special.vocab_size, latent_channels=LATENT[0]
    )
    model.init_weights(5)
    return model


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def special(package: Path) -> SpecialIds:
    return SpecialIds.after(json.loads((package / "config.json").read_text())["num_pieces"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary is the pieces alone, and names two of them the begin and the end."""
    folder = tmp_path_factory.mktemp("llama")
    return write_llama(folder, model_config(), vocab_size=NUM_PIECES)


def assert_drawn_like(stored: torch.Tensor, new: torch.Tensor, drawn: torch.Tensor) -> None:
    """New rows have each column's mean and spread of the stored, and the direction of the draw within them."""
    mean, spread = stored.mean(dim=0), stored.std(dim=0)
    assert float((new - mean).std() / spread.mean()) == pytest.approx(1, abs=0.15)
    within = torch.stack([((new - mean) / spread).flatten(), drawn.flatten()])
    assert float(torch.corrcoef(within)[0, 1]) > 0.999


def test_a_package_gives_its_averaged_weights_to_the_bit(package, special):
    model = fresh(special)
    begun = begin(model, Start(package), special=special)
    expected = load_package(package).model.state_dict()
    assert not begun.new
    assert not begun.copied
    assert set(begun.loaded) == set(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_llama_gives_its_transformer_and_what_it_has_not_is_drawn(llama, caplog):
    model, drawn = fresh(), fresh().state_dict()
    with caplog.at_level("INFO", logger="transfusion"):
        begun = begin(model, Start(llama), special=SPECIAL)
    theirs = LlamaForCausalLM.from_pretrained(llama).state_dict()
    weights = model.state_dict()
    table = weights["embedding.weight"]
    stored = theirs["model.embed_tokens.weight"]
    assert torch.equal(table[:NUM_PIECES], stored)
    # Begin and end of a document are the checkpoint's; padding and the ends of images are new.
    assert torch.equal(table[[SPECIAL.bos, SPECIAL.eos]], stored[[1, 2]])
    others = [SPECIAL.pad, SPECIAL.boi, SPECIAL.eoi]
    assert_drawn_like(stored, table[others], drawn["embedding.weight"][others])
    gate = theirs["model.layers.1.mlp.gate_proj.weight"]
    assert torch.equal(weights["blocks.1.ffn.gate_up.weight"].chunk(2)[0], gate)
    assert all(name.startswith(("down.", "up.")) for name in begun.new)
    assert all(torch.equal(weights[name], drawn[name]) for name in begun.new)
    (told,) = caplog.messages
    assert "3 rows of the vocabulary drawn" in told
    assert "down.conv_in.weight" in told


def test_a_larger_vocabulary_keeps_rows_by_what_they_mean(package, special):
    larger = SpecialIds.after(special.pad + 7)
    model, drawn = fresh(larger), fresh(larger).state_dict()
    begin(model, Start(package), special=larger)
    expected = load_package(package).model.state_dict()
    for name in ("embedding.weight", "head.weight"):
        got = model.state_dict()[name]
        assert torch.equal(got[: special.pad], expected[name][: special.pad])
        assert torch.equal(got[larger.boi], expected[name][special.boi])
        grown = slice(special.pad, larger.pad)
        assert_drawn_like(expected[name], got[grown], drawn[name][grown])


def test_every_mismatch_is_told_at_once(package, special):
    other = SpecialIds.after(special.pad - 9)
    model = TransfusionModel(
        model_config(adapter="linear", norm="post", rope_theta=500.0),
        vocab_size=other.vocab_size,
        latent_channels=LATENT[0],
    )
    with pytest.raises(ArtifactError) as caught:
        begin(model, Start(package, tokenizer=b"another"), special=other)
    told = str(caught.value)
    for part in ("rope_theta is 10000.0", "norm is 'pre'", "adapter is 'unet'", "tokenizer.model"):
        assert part in told
    assert "its own tokenizer" in told
    assert re.search(r"\.\.\. and \d+ more", told), told


def test_what_does_not_fit_is_left_out_only_when_asked_for(package, special):
    model, drawn = fresh(special, adapter="linear"), fresh(special, adapter="linear").state_dict()
    with pytest.raises(ArtifactError, match="init_strict: false"):
        begin(model, Start(package), special=special)
    begun = begin(model, Start(package, strict=False), special=special)
    assert {name.split(".")[0] for name in begun.new} == {"down", "up"}
    assert all(torch.equal(model.state_dict()[name], drawn[name]) for name in begun.new)
    # Another transformer is another model, strict or not.
    with pytest.raises(ArtifactError, match="norm is 'pre'"):
        begin(fresh(special, norm="post"), Start(package, strict=False), special=special)


def test_patches_of_their_own_begin_as_texts(llama):
    model = fresh(adapter="linear", weights="by_modality")
    begun = begin(model, Start(llama), special=SPECIAL)
    block = model.blocks[1]
    assert torch.equal(block.image.attention.qkv.weight, block.attention.qkv.weight)
    assert torch.equal(model.image_norm.weight, model.norm.weight)
    assert "blocks.1.image.ffn.out.weight" in begun.copied
    assert not set(begun.copied) & set(begun.loaded)


def started(llama: Path, **changed: Any) -> TransformerTrainee:
    settings = config(init_from=str(llama), **changed)
    return TransformerTrainee(
        settings,
        MadeUpSource(),
        num_pieces=NUM_PIECES,
        latent_channels=LATENT[0],
        device=torch.device("cpu"),
        start=Start(llama),
    )


def trained(trainee: TransformerTrainee, steps: int = 3) -> TrainingState:
    state = TrainingState(trainee.model, trainee.config)
    for step in range(steps):
        trainee.forward_backward(step)
        state.clip()
        state.update(step)
    return state


def whole(trainee: TransformerTrainee) -> dict[str, torch.Tensor]:
    return {n: p.full_tensor().clone() for n, p in trainee.model.named_parameters()}


def test_what_was_loaded_learns_at_a_rate_of_its_own(world, llama):
    half, still = (started(llama, lr_scale_pretrained=scale) for scale in (0.5, 0.0))
    before = whole(still)
    groups = parameter_groups(half.model, weight_decay=0.1)
    assert sorted(group.get("lr_scale", 1.0) for group in groups) == [0.5, 0.5, 1.0, 1.0]
    state = trained(still)
    for name, weight in whole(still).items():
        loaded = not name.startswith(("down.", "up."))
        assert torch.equal(weight, before[name]) == loaded, name
    assert torch.equal(state.averaged.weights["norm.weight"].full_tensor(), before["norm.weight"])


def test_frozen_text_stays_and_so_do_the_logits_of_text(world, llama):
    model = model_config(adapter="linear", weights="by_modality")
    trainee = started(llama, model=model, frozen_text=True)
    before = whole(trainee)
    batch = MadeUpSource().validation(0)
    captions = batch.text_weight.bool()
    with torch.no_grad():
        first = trainee.model(batch, batch.latents)
    reshard(trainee.model)
    state = trained(trainee)
    for name, weight in whole(trainee).items():
        own = "image" in name or name.startswith(("down.", "up."))
        assert torch.equal(weight, before[name]) != own, name
    with torch.no_grad():
        last = trainee.model(batch, batch.latents)
    # Targets before BOI come from text alone; the last, of what stands behind an image, do not.
    same = (first.logits == last.logits).all(dim=-1)[captions]
    ends = (batch.text_targets == SPECIAL.eos)[captions]
    assert bool(same[~ends].all())
    assert not bool(same[ends].any())
    assert (first.epsilon - last.epsilon).abs().max() > 1e-4
    # What a checkpoint holds can be taken again.
    saved = state.as_dict()
    assert len(saved["moments"]) == sum("image" in n or n[:2] in ("do", "up") for n in before)


def test_a_plan_knows_a_start_by_what_it_holds(tmp_path, package, llama):
    plain = config()
    assert list_files(plain) is None
    assert config(init_from=str(llama)).identity() == plain.identity()
    one, other = (list_files(config(init_from=str(place))) for place in (package, llama))
    assert [row["name"] for row in one] == ["config.json"]
    assert [row["name"] for row in other] == ["config.json", "model.safetensors"]
    with pytest.raises(ArtifactError, match="must be a model package, or a Llama-family"):
        list_files(config(init_from=str(tmp_path)))


@pytest.mark.parametrize(
    ("changed", "roles", "told"),
    [
        ({"init_from": "here"}, {"init_from": "there"}, "only one"),
        ({"lr_scale_pretrained": 0.1}, {}, "starts from nothing"),
        (
            {"frozen_text": True},
            {"init_from": "there"},
            "model.weights to by_modality, got 'shared'",
        ),
        (
            {"frozen_text": True, "model": model_config(weights="by_modality")},
            {},
            "in init_from",
        ),
    ],
)
def test_settings_of_a_start_that_contradict_each_other_are_refused(changed, roles, told):
    (fault,) = faults(config(**changed), roles)
    assert told in fault


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that learned on a grid of two by two."""
    folder = tmp_path_factory.mktemp("placed")
    return tiny_package(folder, model=model_config(patch_positions="sinusoidal_2d"))


@pytest.mark.parametrize(
    ("options", "grid_side", "told"),
    [
        ({"patch_positions": "sinusoidal_2d"}, 4, True),
        ({"patch_positions": "sinusoidal_2d"}, 2, False),
        ({"patch_positions": "sinusoidal_2d", "position_grid": 2}, 4, False),
        ({"patch_positions": "sinusoidal_2d", "position_grid": 3}, 2, True),
    ],
)
def test_another_grid_than_the_one_learned_on_is_told_of_with_the_value_to_set(
    placed, special, caplog, options, grid_side, told
):
    begin(fresh(special, **options), Start(placed, grid_side=grid_side), special=special)
    remedy = (
        "set config.model.position_grid of this stage to 2, and they are spread over the places"
    )
    assert (remedy in caplog.text) == told


def test_ranks_in_the_sequence_need_no_other_grid(package, special, caplog):
    begin(fresh(special), Start(package, grid_side=4), special=special)
    assert "position_grid" not in caplog.text


def test_a_model_goes_on_at_twice_the_resolution(world, placed, special):
    model = model_config(patch_positions="sinusoidal_2d", position_grid=2)
    trainee = TransformerTrainee(
        config(model=model),
        MadeUpSource(scale=2),
        num_pieces=NUM_PIECES,
        latent_channels=LATENT[0],
        device=torch.device("cpu"),
        start=Start(placed, strict=False, grid_side=4),
    )
    before = whole(trainee)
    expected = load_package(placed).model.state_dict()
    assert torch.equal(before["down.conv_in.weight"], expected["down.conv_in.weight"])
    trained(trainee)
    assert all(p.isfinite().all() for p in whole(trainee).values())
    assert not torch.equal(whole(trainee)["down.conv_in.weight"], before["down.conv_in.weight"])
    assert trainee.validate()["diffusion_loss"] > 0


def test_settings_of_a_start_that_go_together_are_taken():
    settings: TrainConfig = config(
        model=model_config(weights="by_modality"), frozen_text=True, lr_scale_pretrained=0.5
    )
    assert faults(settings, {"init_from": "there"}) == []


def test_another_autoencoder_than_the_packages_is_warned_of(package, special, caplog):
    weights = "diffusion_pytorch_model.safetensors"
    own = json.loads((package / "config.json").read_text())["files"][f"autoencoder/{weights}"]
    for known in (own, None):
        begin(fresh(special), Start(package, autoencoder=known), special=special)
    assert "another autoencoder" not in caplog.text
    begin(fresh(special), Start(package, autoencoder="0" * 64), special=special)
    assert "learned images by another autoencoder than the mixture's" in caplog.text


def model_of(values: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate_json(json.dumps(values))


def test_a_plan_knows_that_a_package_is_of_another_model(package):
    theirs = json.loads((package / "config.json").read_text())["model"]
    same = TrainConfig(seed=0, steps=1, model=model_of(theirs), init_from=str(package))
    assert faults(same, {}) == []
    other = model_of(theirs | {"depth": theirs["depth"] + 1})
    (told,) = faults(TrainConfig(seed=0, steps=1, model=other, init_from=str(package)), {})
    assert told == (
        f".init_from: its depth is {theirs['depth']}, the model's {other.depth}; they must be the same"
    )
