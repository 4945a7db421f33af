"""Sizes: golden parameter counts against the paper, and configs that cannot be."""

import pytest
import torch
from pydantic import ValidationError

from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.presets import PRESETS
from transfusion.model.transformer import TransfusionModel

LLAMA_VOCABULARY = 32_005


def count(config, *, part=None, vocab_size=LLAMA_VOCABULARY):
    with torch.device("meta"):
        model = TransfusionModel(config, vocab_size=vocab_size, latent_channels=8)
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if part is None or name.startswith(part)
    )


@pytest.mark.parametrize(
    ("name", "transformer", "feed_forward"),
    [
        # 2 v d + depth (4 d^2 + 3 d ffn + 2 d) + d, by hand
        ("0.16B", 162_431_232, 2048),
        ("0.37B", 373_877_760, 2816),
        ("0.76B", 777_871_872, 4096),
        ("1.4B", 1_364_318_208, 5632),
        ("7B", 6_738_456_576, 11008),
    ],
)
def test_a_size_of_the_paper_has_its_parameters(name, transformer, feed_forward):
    config = PRESETS[name]
    assert config.hidden_dim == feed_forward
    d, v = config.dim, LLAMA_VOCABULARY
    assert 2 * v * d + config.depth * (4 * d * d + 3 * d * feed_forward + 2 * d) + d == transformer
    adapter = count(config, part=("down.", "up."))
    assert count(config) == transformer + adapter
    assert adapter / transformer < 0.005
    unet = count(PRESETS[f"{name}-unet"], part=("down.", "up."))
    assert unet == pytest.approx(0.27e9, rel=0.03)


@pytest.mark.parametrize(("name", "parameters"), [("quickstart", 2_375_480), ("tiny", 331_304)])
def test_a_small_size_has_its_parameters(name, parameters):
    assert count(PRESETS[name], vocab_size=1024) == parameters


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": 30, "num_heads": 4}, "multiple of twice num_heads 4"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads 4, got 3"),
        ({"adapter": "unet", "patch_size": 3}, "power of two"),
        ({"adapter": "unet", "patch_size": 4}, "name 3 levels for patch_size 4, got 2"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        ModelConfig(**({"dim": 64, "depth": 1, "num_heads": 2} | settings))


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("adapter", ["linear", "unet"])
def test_any_patch_size_that_divides_the_latent_gives_back_its_shape(adapter, patch_size):
    levels = patch_size.bit_length()
    config = ModelConfig(
        dim=16,
        depth=1,
        num_heads=2,
        patch_size=patch_size,
        adapter=adapter,
        unet=UNetConfig(channels=(4,) * levels, time_dim=8),
    )
    model = TransfusionModel(config, vocab_size=10, latent_channels=3)
    noisy, timesteps = torch.randn(2, 3, 8, 16), torch.tensor([0, 999])
    encoded = model.encode_images(noisy, timesteps)
    assert encoded.patches.shape == (2, 8 * 16 // patch_size**2, 16)
    assert model.decode_images(encoded.patches, timesteps, encoded).shape == noisy.shape
