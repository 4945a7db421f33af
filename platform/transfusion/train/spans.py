"""How long the forwards and backwards of a step took, without waiting for the device."""

import time

import torch


class Spans:
    """Durations by name over the micro-batches of one step. On CUDA they are of the device, by events."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.mark("")

    def mark(self, name: str) -> None:
        """What was done since the mark before was `name`; an empty name is of no interest."""
        if not self._on_gpu:
            self._marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))

    def seconds(self, name: str) -> float:
        """All spans of a name together; on CUDA to be called when the device has come past the last mark."""
        total = 0.0
        for (_, began), (ended_as, ended) in zip(self._marks, self._marks[1:], strict=False):
            if ended_as != name:
                continue
            if isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                total += began.elapsed_time(ended) / 1000
            elif isinstance(began, float) and isinstance(ended, float):
                total += ended - began
        return total
