"""Losses of a fixed batch under seed 0, as numbers: whatever moves what a model computes is seen here.

They were recorded from the code as it was when this test came. A change that is meant to move them says so, and
raises the version of the training stage.
"""

import pytest
import torch

from tests.model.conftest import LATENT_SHAPE, SPECIAL
from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import loss_sums

SMALL = {"dim": 32, "depth": 2, "num_heads": 4}
UNET = UNetConfig(channels=(8, 16), time_dim=16)
GOLDEN = {
    "paper": (ModelConfig(**SMALL, time_embedding="patch"), 3.6036491, 1.3209403),
    "quickstart": (
        ModelConfig(
            **SMALL,
            adapter="unet",
            unet=UNET,
            patch_positions="sinusoidal_2d",
            noisy_skip="gated",
        ),
        3.6254995,
        0.6905962,
    ),
    "chameleon": (
        ModelConfig(**SMALL, num_kv_heads=2, qk_norm="rms", norm="post", time_embedding="patch"),
        3.9522932,
        1.3949217,
    ),
}
"""Config, cross-entropy of a text target, and squared error of an image's element."""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_model_computes_what_it_always_did(mixed_batch, name):
    config, cross_entropy, error = GOLDEN[name]
    model = TransfusionModel(config, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT_SHAPE[0])
    model.init_weights(0)
    with torch.no_grad():
        # Drawn small, the ways out say nearly nothing of what is before them.
        for parameter in (p for p in model.parameters() if p.ndim > 1):
            parameter.mul_(8)
        sums = loss_sums(model(mixed_batch, mixed_batch.noise), mixed_batch)
    found = (sums.lm_sum / sums.lm_count).item(), (sums.diffusion_sum / sums.image_count).item()
    assert found == pytest.approx((cross_entropy, error), rel=1e-4)
