"""The device: its clock, its memory and what it reaches on plain work."""

import functools
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.benchmarks.measure import Result, Turns, take_turns
from transfusion.train.peaks import peak_tflops


class Device:
    """One GPU, or a CPU that stands in for it."""

    def __init__(self, kind: str) -> None:
        self.torch = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
        self.is_cuda = kind == "cuda"
        self.name = torch.cuda.get_device_name() if self.is_cuda else "CPU in place of a GPU"

    def turns(self, runs: Mapping[str, Callable[[], Any]], *, rounds: int) -> Turns:
        """Seconds on the clock of the wall, the device's work included."""
        return take_turns(runs, rounds=rounds, clock=self.now)

    def free(self) -> None:
        """Gives cached memory back; the next peak is counted anew."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def forget(self) -> None:
        """After one part and before the next: models that are gone, and what was compiled for them.

        A sharded model lies in cycles, and lives on until they are collected; dynamo compiles a function for eight
        kinds of input and not for a ninth.
        """
        gc.collect()
        torch._dynamo.reset()
        self.free()

    def peak_gib(self) -> float:
        """Most memory that was taken since `free`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else 0.0

    def now(self) -> float:
        """Seconds on the clock of the wall when all that was asked of the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @functools.cached_property
    def gemm_tflops(self) -> float:
        """What one large bf16 product reaches here."""
        side = 8192 if self.is_cuda else 512
        a, b = (torch.randn(side, side, device=self.torch, dtype=torch.bfloat16) for _ in range(2))
        count = 20

        def products() -> None:
            for _ in range(count):
                torch.mm(a, b)

        seconds = self.turns({"products": products}, rounds=5).median("products")
        return count * 2 * side**3 / seconds / 1e12

    @functools.cached_property
    def copy_gb_s(self) -> float:
        """Bytes read and written a second by a large copy."""
        size = 2**30 if self.is_cuda else 2**24
        source = torch.zeros(size, dtype=torch.uint8, device=self.torch)
        target = torch.empty_like(source)

        def copies() -> None:
            for _ in range(10):
                target.copy_(source)

        return 10 * 2 * size / self.turns({"copies": copies}, rounds=5).median("copies") / 1e9

    @property
    def sheet_tflops(self) -> float:
        """The maker's number for dense bf16; what is measured where the device is not in the table."""
        return peak_tflops(self.torch) or self.gemm_tflops

    def results(self) -> list[Result]:
        """What the other numbers are to be read beside."""
        return [
            Result(
                name="one bf16 product of 8192 x 8192 x 8192"
                if self.is_cuda
                else "one bf16 product",
                value=self.gemm_tflops,
                unit="TFLOP/s",
                reference=self.sheet_tflops,
                ratio=self.gemm_tflops / self.sheet_tflops,
                against="the maker's sheet",
            ),
            Result(name="copy within the device", value=self.copy_gb_s, unit="GB/s"),
        ]


def describe(device: Device) -> dict[str, Any]:
    """What a number was measured on."""
    from tests.benchmarks.machine import describe as describe_host

    found = describe_host() | {"device": device.name, "cuda": torch.version.cuda}
    if device.is_cuda:
        found["capability"] = list(torch.cuda.get_device_capability())
    return found
