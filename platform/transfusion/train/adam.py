"""AdamW, with moments in fp32 or in bf16. Plain torch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from transfusion.train.loop_config import LoopConfig
from transfusion.train.parallel import local, parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW over the model's groups, with its moments as the config says."""
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    betas = (config.beta1, config.beta2)
    if config.adam_moments == "bf16":
        return AdamWBf16Moments(groups, lr=config.lr, betas=betas, eps=config.eps)
    # One kernel over all weights: a call a sharded weight costs four times as much on small models.
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


class AdamWBf16Moments(torch.optim.Optimizer):
    """`torch.optim.AdamW` with fp32 weights and arithmetic; only what lies between steps is rounded to bf16.

    Rounded to the nearest, so that a resumed run takes the same steps. A second moment then stands still while the
    squared gradient is within 2^-9 / (1 - beta2) of it: 4% at 0.95, but threefold at 0.999.
    One weight at a time goes through fp32, and at most one has temporaries.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update by the gradients that are there."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    # On the host, as torch's own: to be read without waiting for the device.
                    state["step"] = torch.tensor(0.0, dtype=torch.float32)
                    for name in MOMENTS:
                        state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                _update(
                    local(parameter),
                    local(parameter.grad),
                    *(local(state[name]) for name in MOMENTS),
                    count=state["step"].item(),
                    group=group,
                )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, which gives all state the type of the weights; back in bf16 it is what was saved."""
        super().load_state_dict(dict(state_dict))
        for state in self.state.values():
            for name in MOMENTS:
                state[name] = state[name].to(torch.bfloat16)


def _update(
    weight: Tensor,
    gradient: Tensor,
    average: Tensor,
    squares: Tensor,
    *,
    count: float,
    group: Mapping[str, Any],
) -> None:
    """Loshchilov and Hutter 2019, arXiv:1711.05101, in the order of torch's `adamw`."""
    beta1, beta2 = group["betas"]
    gradient = gradient.float()
    first = average.float().lerp_(gradient, 1 - beta1)
    second = squares.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    average.copy_(first)
    squares.copy_(second)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    scale = second.sqrt_().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
    weight.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**count))
