"""Where a run's time goes: parts of a step, what is done beside steps, and what is left."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from transfusion.train.measures import Stopwatch
from transfusion.train.trainee import StepResult

BESIDE = ("checkpoint_s", "validation_s", "preview_s")
"""What is done after some steps. It is counted in the timing of the next one."""


class Clock:
    """Measures on this rank from one finished step to the next, so that the parts add up to the whole."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._update = Stopwatch(device)
        self._update_before: Stopwatch | None = None
        self._ended = time.perf_counter()
        self._beside = dict.fromkeys(BESIDE, 0.0)

    def start(self) -> None:
        """What came before, such as the loading of a checkpoint, is no part of a step."""
        self._ended = time.perf_counter()

    @contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """Counts a block under one of `BESIDE`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._beside[name] += time.perf_counter() - began

    def computed(self) -> float:
        """Marks the end of backward, and returns it by `time.perf_counter`."""
        self._update = Stopwatch(self._device)
        self._update.mark("update")
        return time.perf_counter()

    def timing(self, result: StepResult, *, began: float, computed: float) -> dict[str, float]:
        """Timing of the step that ends now.

        `other_s` is what no part explains: rows of metrics, progress, messages between ranks.

        Args:
            began: When the step began, by `time.perf_counter`; so with `computed`, the end of backward.
        """
        optimizer_s = self._optimizer_s()
        ended = time.perf_counter()
        step_s = ended - began
        if result.forward_s is not None and result.backward_s is not None:
            computing = {"forward_s": result.forward_s, "backward_s": result.backward_s}
        else:
            computing = {"compute_s": computed - began - result.data_s}
        parts = {
            "data_s": result.data_s,
            **computing,
            "optimizer_s": optimizer_s,
            **self._beside,
        }
        other_s = ended - self._ended - sum(parts.values())
        self._ended = ended
        self._beside = dict.fromkeys(BESIDE, 0.0)
        return {
            "step_s": step_s,
            **parts,
            "other_s": max(other_s, 0.0),
            **{f"{key}_per_s": count / step_s for key, count in result.rates.items()},
            **_arithmetic(result, step_s=step_s),
            "peak_memory_bytes": float(peak_memory_bytes()),
        }

    def _optimizer_s(self) -> float:
        """Of this step's update; on a GPU, which has only been asked for it, of the one before, which is done."""
        self._update.mark()
        finished = self._update_before if self._device.type == "cuda" else self._update
        self._update_before = self._update
        return finished.seconds(("update",))[0] if finished else 0.0


def _arithmetic(result: StepResult, *, step_s: float) -> dict[str, float]:
    """What the step made of its devices; `mfu` is the share of their peak."""
    if result.flops is None:
        return {}
    found = {"tflops_per_s": result.flops / step_s / 1e12}
    if result.peak_flops_per_s is not None:
        found["mfu"] = result.flops / step_s / result.peak_flops_per_s
    return found


def peak_memory_bytes() -> int:
    """The most that this process held at once: of the GPU's memory where there is one, else of the machine's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
