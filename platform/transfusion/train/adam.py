"""AdamW, with moments in fp32 or in bf16. Plain torch."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from transfusion.train.loop_config import LoopConfig
from transfusion.train.parallel import local, parameter_groups

log = logging.getLogger(__name__)

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
    Where torch has one kernel for all of it that is taken; elsewhere one weight at a time goes through fp32, and
    at most one has temporaries.
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
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self._begin(weight)
            if weights and has_fused_kernel(local(weights[0]).device):
                self._update_together(weights, group)
            else:
                for weight in weights:
                    self._update_alone(weight, group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's, which for a moment would hold all of them in the type of the weights: these stay in bf16."""
        saved: Mapping[Any, Mapping[str, Tensor]] = state_dict["state"]
        counts = {key: {"step": state["step"]} for key, state in saved.items()}
        super().load_state_dict({**state_dict, "state": counts})
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for key, weight in zip(keys, weights, strict=True):
            if key not in saved:
                continue
            state = self.state[weight]
            state["step"] = state["step"].to(_place_of_counts(weight))
            for name in MOMENTS:
                state[name] = saved[key][name].to(weight.device, torch.bfloat16)

    def _begin(self, weight: Tensor) -> None:
        state = self.state[weight]
        state["step"] = torch.zeros((), dtype=torch.float32, device=_place_of_counts(weight))
        for name in MOMENTS:
            state[name] = torch.zeros_like(weight, dtype=torch.bfloat16)

    def _update_together(self, weights: list[Tensor], group: Mapping[str, Any]) -> None:
        states = [self.state[weight] for weight in weights]
        counts = [state["step"] for state in states]
        torch._foreach_add_(counts, 1)
        averages, squares = ([local(state[name]) for state in states] for name in MOMENTS)
        torch._fused_adamw_(
            [local(weight) for weight in weights],
            [local(cast("Tensor", weight.grad)) for weight in weights],
            averages,
            squares,
            [],
            counts,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _update_alone(self, weight: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[weight]
        state["step"] += 1
        _update(
            local(weight),
            local(cast("Tensor", weight.grad)),
            *(local(state[name]) for name in MOMENTS),
            count=state["step"].item(),
            group=group,
        )


@functools.cache
def has_fused_kernel(device: torch.device) -> bool:
    """Whether torch's fused AdamW takes moments in bf16 beside fp32 weights there: on CUDA, from torch 2.13 on."""
    weight, gradient, count = (torch.ones(1, device=device) for _ in range(3))
    first, second = (torch.ones(1, device=device, dtype=torch.bfloat16) for _ in MOMENTS)
    try:
        torch._fused_adamw_(
            [weight], [gradient], [first], [second], [], [count],
            lr=0.1, beta1=0.9, beta2=0.9, weight_decay=0.0, eps=1.0, amsgrad=False, maximize=False,
        )  # fmt: skip
    except RuntimeError as error:
        log.debug("no fused AdamW with bf16 moments on %s: %s", device, error)
        return False
    return True


def _place_of_counts(weight: Tensor) -> torch.device:
    """As torch's own: on the host, to be read without waiting for the device, unless its kernel reads them."""
    device = local(weight).device
    return device if has_fused_kernel(device) else torch.device("cpu")


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
