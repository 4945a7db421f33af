"""The rule for rates by width: what it scales, that it is off unless asked for, and the coordinate check.

The check is the rule's own promise (Yang et al. 2022, arXiv:2203.03466, appendix D.1) and knows nothing of how
it is kept: after a few updates what a model computes has moved as far at every width.
"""

import json

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests.tiny import LATENT, model_config
from tests.train.worlds import SPECIAL, MadeUpSource, config, in_world, make_trainee
from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.train import width
from transfusion.train.config import TrainConfig
from transfusion.train.parallel import full, parameter_groups, reshard
from transfusion.train.state import TrainingState

WIDTHS = (64, 128, 256)
MODELS = {
    "linear": {},
    "monoformer": {"image_head": "adaln", "qk_norm": "rms"},
    "unet": {"adapter": "unet", "unet": UNetConfig(channels=(8, 16), time_dim=16)},
}


def settings_of(dim, lr_rule, **options):
    return config(
        model=ModelConfig(dim=dim, depth=2, num_heads=dim // 32, **options),
        lr_rule=lr_rule,
        base_width=WIDTHS[0] if lr_rule == "mup" else None,
        lr=2e-3,
        min_lr=2e-3,
        warmup_steps=0,
        steps=4,
    )


def moved(settings):
    """Root mean square of how far a held-out batch's activations have moved, by what they are."""
    trainee = make_trainee(settings, source := MadeUpSource())
    batch, path, seen = source.validation(0), noise_path("cosine"), {}
    for index, block in enumerate(trainee.model.blocks):
        block.register_forward_hook(
            lambda _module, _given, output, name=f"block {index}": seen.update({name: output})
        )

    def look():
        with torch.no_grad():
            noisy = add_noise(batch.latents, batch.noise, batch.timesteps, path)
            output = trainee.model(batch, noisy)
        reshard(trainee.model)
        return seen | {
            "logits": output.logits[batch.text_weight.bool()],
            "noise": output.epsilon[batch.image_weight.bool()],
        }

    before = {name: value.clone() for name, value in look().items()}
    state = TrainingState(trainee.model, settings)
    for step in range(settings.steps):
        trainee.forward_backward(step)
        state.update(step)
    return {
        name: float((value - before[name]).square().mean().sqrt()) for name, value in look().items()
    }


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("model", MODELS)
def test_what_four_updates_move_is_as_large_at_every_width_by_the_rule_and_grows_without(
    world, model
):
    by_rule, without = (
        [moved(settings_of(dim, rule, **MODELS[model])) for dim in WIDTHS]
        for rule in ("mup", "none")
    )
    assert by_rule[0] == without[0]  # at the base nothing is scaled, to the bit
    for name in by_rule[0]:
        sizes = [sizes[name] for sizes in by_rule]
        assert max(sizes) / min(sizes) < 1.4, (name, sizes)
        if (model, name) != ("unet", "noise"):  # a U-Net's own width does not grow
            sizes = [sizes[name] for sizes in without]
            assert sizes[2] > 1.3 * sizes[1] > 1.69 * sizes[0], (name, sizes)


@pytest.mark.parametrize("adapter", ["linear", "unet"])
def test_matrices_that_read_the_stream_are_scaled_and_nothing_else(adapter):
    model = model_config(adapter, image_head="adaln" if adapter == "linear" else "linear")
    found = width.rates(model, base_width=8)
    assert set(found.values()) == {0.25}
    block = ("attention.qkv", "attention.out", "ffn.gate_up", "ffn.out")
    expected = {f"blocks.{i}.{name}.weight" for i in range(2) for name in block} | {"head.weight"}
    if adapter == "linear":
        expected |= {"down.time.out.weight", "up.time.out.weight"}
        expected |= {"up.project.weight", "up.modulation.weight"}
    else:
        expected |= {"up.project_in.weight"}
    assert set(found) == expected


def test_the_way_out_starts_as_one_over_the_width():
    spreads = {}
    for dim in (64, 256):
        config = ModelConfig(dim=dim, depth=1, num_heads=2)
        scales = width.first_scales(config, base_width=64)
        made = TransfusionModel(config, vocab_size=2000, latent_channels=64)
        made.init_weights(0)
        assert "blocks.0.ffn.out.weight" not in scales
        spreads[dim] = [
            float(dict(made.named_parameters())[name].std()) * scales[name]
            for name in ("head.weight", "up.project.weight")
        ]
    for base, wide in zip(spreads[64], spreads[256], strict=True):
        assert wide / base == pytest.approx(0.25, rel=0.03)


def first_weights_of_two_ranks(folder):
    trainee = make_trainee(settings_of(128, "mup"), MadeUpSource())
    held = {name: full(weight) for name, weight in trainee.model.named_parameters()}
    if dist.get_rank() == 0:
        save_file({name: held[name].clone() for name in held}, folder / "held.safetensors")


def test_ranks_that_draw_in_turns_hold_what_one_would_draw_scaled_as_the_rule_has_it(tmp_path):
    in_world(2, first_weights_of_two_ranks, tmp_path)
    held = load_file(tmp_path / "held.safetensors")
    settings = settings_of(128, "mup")
    model = TransfusionModel(
        settings.model, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0]
    )
    model.init_weights(settings.seed)
    scales = width.first_scales(settings.model, base_width=settings.base_width)
    assert len(scales) > 1
    assert set(held) == set(dict(model.named_parameters()))
    for name, weight in model.named_parameters():
        assert torch.equal(held[name], weight.detach() * scales.get(name, 1.0)), name


def test_rates_go_to_the_optimizer_and_the_decay_of_an_update_stays(world, tmp_path):
    settings = settings_of(128, "mup")
    trainee = make_trainee(settings, MadeUpSource())
    by_id = {
        id(parameter): group
        for group in parameter_groups(trainee.model, weight_decay=0.1)
        for parameter in group["params"]
    }
    parameters = dict(trainee.model.named_parameters())
    told = {
        name: (by_id[id(parameters[name])].get("lr_scale", 1), by_id[id(parameters[name])]["weight_decay"])
        for name in ("blocks.0.ffn.out.weight", "head.weight", "down.project.weight",
                     "embedding.weight", "norm.weight", "up.project.bias")
    }  # fmt: skip
    assert told == {
        "blocks.0.ffn.out.weight": (0.5, 0.2),
        "head.weight": (0.5, 0.2),
        "down.project.weight": (1, 0.1),
        "embedding.weight": (1, 0.0),
        "norm.weight": (1, 0.0),
        "up.project.bias": (1, 0.0),
    }
    before = parameters["head.weight"].full_tensor().clone()
    state = TrainingState(trainee.model, settings)
    for parameter in trainee.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.update(0)
    # Adam's first update is the rate, whatever the gradient; the decay is the run's rate times the run's decay.
    expected = before * (1 - settings.lr * settings.weight_decay) - settings.lr / 2
    torch.testing.assert_close(parameters["head.weight"].full_tensor(), expected)


def test_without_the_rule_nothing_is_scaled_and_no_identity_moves(world):
    assert not {"lr_rule", "base_width"} & config().identity().keys()
    model = make_trainee(config(), MadeUpSource()).model
    assert (model.lr_scales, model.decay_scales) == ({}, {})
    groups = parameter_groups(model, weight_decay=0.1)
    assert [(group.get("lr_scale"), group["weight_decay"]) for group in groups] == [
        (None, 0.1), (None, 0.0)
    ]  # fmt: skip
    drawn = TransfusionModel(
        config().model, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0]
    )
    drawn.init_weights(config().seed)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.full_tensor(), drawn.state_dict()[name]), name


@pytest.mark.parametrize("wrong", [{"lr_rule": "mup"}, {"base_width": 64}])
def test_the_rule_and_its_width_go_together(wrong):
    values = json.dumps(config().resolved() | wrong)
    with pytest.raises(ValidationError, match="base_width and lr_rule 'mup' go together"):
        TrainConfig.model_validate_json(values)
