"""Options of the model: what they add, and that they are off unless asked for."""

import math
from typing import Any

import pytest
import torch

from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.positions import sinusoid_2d
from transfusion.model.skip import NoisySkip
from transfusion.model.transformer import TransfusionModel


def model(**options: Any) -> TransfusionModel:
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


CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 3)])
def test_positions_spread_over_their_own_grid_are_those_of_no_spreading(
    grid: tuple[int, int],
) -> None:
    plain = sinusoid_2d(grid, 12, device=CPU)
    assert torch.equal(sinusoid_2d(grid, 12, device=CPU, learned_side=max(grid)), plain)


@pytest.mark.parametrize(("small", "times"), [((8, 8), 2), ((3, 7), 2), ((7, 3), 3)])
def test_a_finer_grid_has_the_places_of_the_coarse_one_and_new_ones_between(
    small: tuple[int, int], times: int
) -> None:
    fine = (times * small[0], times * small[1])
    spread = sinusoid_2d(fine, 16, device=CPU, learned_side=max(small)).view(*fine, 16)
    known = sinusoid_2d(small, 16, device=CPU).view(*small, 16)
    assert torch.equal(spread[::times, ::times], known)
    # The fastest wave, of one patch a radian: row 1 of the fine grid is a part of row 1 of the coarse.
    assert spread[1, 0, 0].item() == pytest.approx(math.sin(1 / times))


def test_a_coarser_grid_skips_places() -> None:
    spread = sinusoid_2d((4, 4), 16, device=CPU, learned_side=8).view(4, 4, 16)
    assert torch.equal(spread, sinusoid_2d((8, 8), 16, device=CPU).view(8, 8, 16)[::2, ::2])


def test_a_model_spreads_the_places_of_its_patches() -> None:
    noisy, times = torch.randn(1, 4, 8, 8), torch.tensor([3])
    plain, spread = (
        model(patch_positions="sinusoidal_2d", **more).encode_images(noisy, times).patches
        for more in ({}, {"position_grid": 2})
    )
    bare = model().encode_images(noisy, times).patches
    torch.testing.assert_close(
        spread - bare, sinusoid_2d((4, 4), 32, device=CPU, learned_side=2)[None]
    )
    assert (plain - spread).abs().max() > 0.1


def test_a_grid_of_positions_is_refused_where_there_are_none_and_left_out_where_it_is_none() -> (
    None
):
    with pytest.raises(ValueError, match="position_grid spreads rows and columns"):
        model(position_grid=8)
    plain = model(patch_positions="sinusoidal_2d").config
    assert "position_grid" not in plain.model_dump()
    assert "position_grid" not in plain.identity()


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
