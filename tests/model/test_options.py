"""Options of the model: what they add, and that they are off unless asked for."""

import math

import pytest
import torch

from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.positions import sinusoid_2d
from transfusion.model.skip import NoisySkip
from transfusion.model.transformer import TransfusionModel


def model(**options: str) -> TransfusionModel:
    config = ModelConfig(
        dim=32,
        depth=1,
        num_heads=2,
        adapter="unet",
        unet=UNetConfig(channels=(8, 8), time_dim=16),
        **options,
    )
    made = TransfusionModel(config, vocab_size=40, latent_channels=4)
    made.init_weights(0)
    return made


def test_an_option_leaves_every_other_weight_as_it_was() -> None:
    plain = model().state_dict()
    with_options = model(noisy_skip="gated", patch_positions="sinusoidal_2d").state_dict()
    for name, weight in plain.items():
        torch.testing.assert_close(with_options[name], weight, atol=0, rtol=0)
    added = set(with_options) - set(plain)
    assert added
    assert all(name.startswith("skip.") for name in added)


def test_rows_and_columns_are_told_apart_as_the_formula_says() -> None:
    table = sinusoid_2d((2, 3), 8, device=torch.device("cpu"))
    # Row 1, column 2, frequencies 1 and 1/10: sines then cosines of the row, then of the column.
    angles = [1.0, 0.1, 2.0, 0.2]
    expected = [math.sin(a) for a in angles[:2]] + [math.cos(a) for a in angles[:2]]
    expected += [math.sin(a) for a in angles[2:]] + [math.cos(a) for a in angles[2:]]
    torch.testing.assert_close(table[5], torch.tensor(expected))
    assert len({tuple(row.tolist()) for row in table}) == 6


def test_a_width_that_is_no_multiple_of_four_is_filled_with_zeros() -> None:
    table = sinusoid_2d((2, 2), 10, device=torch.device("cpu"))
    assert table.shape == (4, 10)
    assert table[:, 8:].abs().max() == 0


@pytest.mark.parametrize("timestep", [0, 999])
def test_the_skip_is_a_weighted_sum_whose_gains_depend_on_the_timestep_alone(timestep: int) -> None:
    torch.manual_seed(0)
    skip = NoisySkip(2)
    times = torch.tensor([timestep])
    zero, one = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
    kept, added = skip(zero, one, times), skip(one, zero, times)
    output, noisy = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(skip(output, noisy, times), kept * noisy + added * output)
    assert ((kept > 0) & (kept < 1) & (added > 0) & (added < 2)).all()


def test_the_skip_starts_at_a_half_and_one() -> None:
    skip = NoisySkip(2)
    torch.nn.init.zeros_(skip.gains.weight)
    torch.nn.init.zeros_(skip.gains.bias)
    one = torch.ones(1, 2, 2, 2)
    torch.testing.assert_close(skip(one, one, torch.tensor([5])), 1.5 * one)
