"""What benchmarks share: results, interleaved timing, and the products of a computation run bare.

A claim of speed is a ratio of runs that took turns in one process: the same code on the same machine
differs by 40% from one minute to the next, the ratio of neighbours does not. Turns are timed in CPU seconds of
the process, which on a free core are seconds: what others do on the machine is left out as far as can be.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One measured number beside what it is compared with."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    """The same quantity of what it is compared with; `against` says what that is."""
    ratio: float | None = None
    """How good the value is against the reference; more is better, whatever the unit."""
    bar: float | None = None
    """The least ratio that is promised; None where nothing is."""
    against: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the promise is kept; None where there is none."""
        if self.bar is None or self.ratio is None:
            return None
        return self.ratio >= self.bar

    def to_json(self) -> dict[str, Any]:
        """A row of the file."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "reference": self.reference,
            "ratio": self.ratio,
            "bar": self.bar,
            "holds": self.holds,
            "against": self.against,
        }


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure."""

    rounds: int = 6
    """Turns that each of the compared takes."""
    documents: int = 100_000
    """Of the mixture that is planned."""
    choosing: bool = False
    """Whether filters and the search for near duplicates choose among them."""


class Turns:
    """Seconds of several computations that took turns."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = seconds

    def median(self, name: str) -> float:
        """Seconds of a turn."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """How many times as fast as the reference: the median over rounds of neighbours' ratios."""
        pairs = zip(self.seconds[reference], self.seconds[name], strict=True)
        return statistics.median(other / own for other, own in pairs)


def take_turns(
    computations: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> Turns:
    """Runs every computation once to warm up, then A, B, A, B ..."""
    for run in computations.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in computations}
    for _ in range(rounds):
        for name, run in computations.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    return Turns(seconds)


def repeat_for(run: Callable[[], Any], *, seconds: float) -> int:
    """How often to call something so that a turn takes about so long."""
    run()
    began = time.process_time()
    run()
    return max(1, round(seconds / max(time.process_time() - began, 1e-7)))


class Products(TorchDispatchMode):
    """Records the matrix products, convolutions and attention kernels of what runs under it, to run them bare.

    Their time on inputs of the same shapes, strides and types, with nothing in between, is the least that the
    computation can take with these products: the roof that a step is compared with.
    """

    _NAMES = frozenset(
        f"aten::{name}"
        for name in (
            "mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward",
            # In inference mode these come whole.
            "linear", "matmul", "conv2d", "scaled_dot_product_attention",
        )
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self._made: dict[Any, torch.Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.name().split(".")[0] in self._NAMES:
            made = torch.utils._pytree.tree_map_only(torch.Tensor, self._like, (args, kwargs))
            self._calls.append((func, *made))
        return func(*args, **kwargs)

    def run(self) -> None:
        """All of them once."""
        with torch.no_grad():
            for func, args, kwargs in self._calls:
                func(*args, **kwargs)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        # One for each place in memory: weights that do not fit a cache must be read here too.
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key not in self._made:
            self._made[key] = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            ).normal_()
        return self._made[key]
