"""How much each of the two losses counts."""

import pytest

from tests.tiny import model_config
from tests.train.worlds import MadeUpSource, config, make_trainee
from transfusion.diffusion.config import ObjectiveConfig


def test_the_language_loss_counts_by_its_weight(world):
    """The head learns of text alone, the way out of images alone."""
    found = {}
    for weight in (1.0, 0.25):
        objective = ObjectiveConfig(lm_weight=weight, diffusion_weight=1.0)
        trainee = make_trainee(config(model=model_config(), objective=objective), MadeUpSource())
        values = trainee.forward_backward(0).values
        parameters = dict(trainee.model.named_parameters())
        found[weight] = [
            parameters[n].grad.full_tensor() for n in ("head.weight", "up.conv_out.bias")
        ]
        expected = weight * values["lm_loss"] + values["diffusion_loss"]
        assert values["loss"] == pytest.approx(expected, rel=1e-6)
    (head, out), (light, same) = found[1.0], found[0.25]
    assert (head * 0.25 - light).abs().max() < 1e-7 < light.abs().max()
    assert (out == same).all()
