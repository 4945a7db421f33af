"""AdamW with moments in bf16: by hand, beside torch's, and through a checkpoint."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.train.outcomes import rows
from tests.train.worlds import config, train
from transfusion.train import adam
from transfusion.train.adam import AdamWBf16Moments, make_optimizer


def test_two_steps_are_what_they_are_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = AdamWBf16Moments(
        [{"params": [weight], "weight_decay": 0.5}], lr=0.1, betas=(0.5, 0.75), eps=0.125
    )
    weight.grad = torch.tensor([2.0, -4.0])
    optimizer.step()
    # Moments 1, -2 and 1, 4; unbiased 2, -4 and 4, 16. Decay takes 5%.
    by_hand = torch.tensor(
        [1 * 0.95 - 0.1 * 2 / (math.sqrt(4) + 0.125), -2 * 0.95 + 0.1 * 4 / (math.sqrt(16) + 0.125)]
    )
    torch.testing.assert_close(weight.detach(), by_hand)
    weight.grad = torch.tensor([1.001, 0.0])
    optimizer.step()
    # The first moment is exact, (1 + 1.001) / 2, in the step; between steps bf16 keeps 1.
    second = 0.75 + 0.25 * 1.001**2
    unbiased = 1.0005 / 0.75, second / (1 - 0.75**2)
    first_weight = by_hand[0] * 0.95 - 0.1 * unbiased[0] / (math.sqrt(unbiased[1]) + 0.125)
    torch.testing.assert_close(weight.detach()[0], first_weight)
    state = optimizer.state[weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert state["exp_avg"].tolist() == [1.0, -1.0]
    assert state["exp_avg_sq"].tolist() == [1.0, 3.0]


def test_it_stays_beside_torch_within_what_bf16_keeps():
    def run(moments):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        settings = config(adam_moments=moments, lr=1e-2)
        optimizer = make_optimizer(model, settings)
        start = [parameter.detach().clone() for parameter in model.parameters()]
        for _ in range(40):
            inputs = torch.randn(64, 16)
            optimizer.zero_grad()
            (model(inputs) - inputs[:, :4]).square().mean().backward()
            optimizer.step()
        moved = [end.detach() - begin for end, begin in zip(model.parameters(), start, strict=True)]
        return torch.cat([part.flatten() for part in moved]), optimizer

    expected, torchs = run("fp32")
    found, optimizer = run("bf16")
    assert isinstance(torchs, torch.optim.AdamW)
    # A part in 256 of each step, and what weights that differ make of it.
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert not torch.equal(found, expected)
    state_bytes = [
        sum(
            value.nbytes
            for state in each.state.values()
            for name, value in state.items()
            if name != "step"
        )
        for each in (optimizer, torchs)
    ]
    assert state_bytes[0] * 2 == state_bytes[1]


def test_one_kernel_takes_the_same_steps_where_torch_has_it(monkeypatch):
    """CUDA's: here it is played by torch's own for fp32 moments, rounded afterwards."""
    fused = torch._fused_adamw_

    def played(weights, gradients, averages, squares, most, counts, **settings):
        assert not most
        assert {tensor.dtype for tensor in [*weights, *gradients, *counts]} == {torch.float32}
        assert {tensor.dtype for tensor in [*averages, *squares]} == {torch.bfloat16}
        wide = [[moment.float() for moment in moments] for moments in (averages, squares)]
        fused(weights, gradients, *wide, [], counts, **settings)
        for moments, wides in zip((averages, squares), wide, strict=True):
            torch._foreach_copy_(moments, wides)

    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
        optimizer = make_optimizer(model, config(adam_moments="bf16", lr=1e-2))
        for step in range(6):
            if step == 3:
                again = make_optimizer(model, config(adam_moments="bf16", lr=1e-2))
                again.load_state_dict(optimizer.state_dict())
                optimizer = again
            model(torch.randn(7, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    alone = run()
    assert not adam.has_fused_kernel(torch.device("cpu"))
    monkeypatch.setattr(adam, "has_fused_kernel", lambda _: True)
    monkeypatch.setattr(torch, "_fused_adamw_", played)
    torch.testing.assert_close(run(), alone, rtol=1e-5, atol=1e-6)


def test_loading_keeps_the_moments_to_the_bit():
    weight = nn.Parameter(torch.randn(5, 3))

    def make():
        return AdamWBf16Moments([{"params": [weight]}], lr=0.1, betas=(0.9, 0.95), eps=1e-8)

    first, second = make(), make()
    weight.grad = torch.randn(5, 3)
    first.step()
    second.load_state_dict(first.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        assert second.state[weight][name].dtype == torch.bfloat16
        assert torch.equal(second.state[weight][name], first.state[weight][name])


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(world, tmp_path):
    settings = config(adam_moments="bf16")
    whole = train(tmp_path / "whole", settings=settings)
    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", settings=settings, stop_after=5)
    resumed = train(tmp_path / "killed", settings=settings)
    assert rows(tmp_path / "killed", resumed) == rows(tmp_path / "whole", whole)
    digests = [
        {file["name"]: file.get("digest") or file["sha256"] for file in outcome["files"]}
        for outcome in (whole, resumed)
    ]
    assert digests[0] == digests[1]
    plain = train(tmp_path / "plain", settings=config())
    losses = [[row["loss"] for row in rows(tmp_path / "plain", plain)]]
    losses.append([row["loss"] for row in rows(tmp_path / "whole", whole)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[1] != losses[0], json.dumps(losses)


def test_a_second_moment_that_would_stand_still_is_refused():
    with pytest.raises(ValidationError, match=r"beta2 of at most 0.99, got 0.999"):
        config(adam_moments="bf16", beta2=0.999)
