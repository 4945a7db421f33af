"""What a step measures beside its losses: by noise level, by group of weights, and how large the stream has grown.

Sums stay on the device, in fp64, until they are added up over ranks, once a step; then they become values.
All of them are reproduced to the bit by a resumed run, as the losses are.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.objective import LossSums
from transfusion.sequence.batch import PackedBatch
from transfusion.train.parallel import local, num_copies

NUM_LEVELS = 4
"""Quarters of the timesteps, the least noise first."""

GROUPS = ("embeddings", "attention", "ffn", "adapter", "head")
"""What weights are told apart as; the last norm goes with the head."""


class Tally:
    """Named sums of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        """Adds scalars, without waiting for the device."""
        for name, value in values.items():
            exact = torch.as_tensor(value, dtype=torch.float64, device=self._device).detach()
            self._sums[name] = self._sums[name] + exact if name in self._sums else exact

    def over_ranks(self) -> dict[str, float]:
        """The sums over all ranks, which must have added the same names: one message."""
        names = sorted(self._sums)
        vector = torch.stack([self._sums[name] for name in names])
        dist.all_reduce(vector)
        return dict(zip(names, vector.tolist(), strict=True))


class StreamSizes:
    """Mean squares of what leaves the last block, by position: they grow for long before a run diverges."""

    def __init__(self, last_block: nn.Module) -> None:
        self._sizes: Tensor | None = None
        last_block.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _given: object, output: Tensor) -> None:
        norms = torch.linalg.vector_norm(output.detach(), dim=-1, dtype=torch.float32)
        self._sizes = norms.square().flatten() / output.shape[-1]

    def sums(self, batch: PackedBatch, *, first_code: int | None = None) -> dict[str, Tensor]:
        """Of the last forward, over text targets and over the patches, or codes, that have a loss."""
        assert self._sizes is not None
        if first_code is not None:
            sizes = self._sizes[batch.text_rows] * batch.text_weight
            is_code = batch.text_targets >= first_code
            return {"text_size": (sizes * ~is_code).sum(), "image_size": (sizes * is_code).sum()}
        # One past the end is where the patches of unused slots lie.
        sizes = torch.cat([self._sizes, self._sizes.new_zeros(1)])
        patches = sizes[batch.image_positions].mean(dim=1)
        return {
            "text_size": (sizes[batch.text_rows] * batch.text_weight).sum(),
            "image_size": (patches * batch.image_weight).sum(),
        }


def loss_tally(sums: LossSums) -> dict[str, Tensor]:
    """The sums that losses are made of, by their names in a tally."""
    found = {
        "lm": sums.lm_sum,
        "diffusion": sums.diffusion_sum,
        "z": sums.z_sum,
        "bound": sums.bound_sum,
        "code": sums.code_sum,
        "code_tokens": sums.code_count,
    }
    return {name: value for name, value in found.items() if value is not None}


def losses(
    sums: Mapping[str, float], counts: Mapping[str, float], objective: ObjectiveConfig
) -> dict[str, float]:
    """The losses of a global batch and their weighted sum, which is what is descended.

    Args:
        sums: `loss_tally` over all ranks.
        counts: Text targets and images of the global batch.
    """
    tokens, images = max(counts["text_tokens"], 1.0), max(counts["images"], 1.0)
    found = {"lm_loss": sums["lm"] / tokens, "diffusion_loss": sums["diffusion"] / images}
    total = objective.lm_weight * found["lm_loss"]
    diffusion = found["diffusion_loss"]
    if "bound" in sums:
        found["variance_bound"] = sums["bound"] / images
        diffusion += objective.bound_weight * found["variance_bound"]
    total += objective.diffusion_weight * diffusion
    if "z" in sums:
        found["z_loss"] = sums["z"] / tokens
        total += found["z_loss"]
    if "code" in sums:
        codes = sums["code_tokens"]
        if codes:
            found["code_loss"] = sums["code"] / codes
        if counts["text_tokens"] > codes:
            found["text_loss"] = (sums["lm"] - sums["code"]) / (counts["text_tokens"] - codes)
    return {"loss": total, **found}


def level_sums(
    sums: LossSums, batch: PackedBatch, *, num_timesteps: int
) -> dict[str, Float[Tensor, ""]]:
    """Diffusion losses and images of each noise level."""
    levels = F.one_hot(batch.timesteps.long() * NUM_LEVELS // num_timesteps, NUM_LEVELS)
    errors = (sums.image_errors.detach()[:, None] * levels).sum(dim=0)
    images = (batch.image_weight[:, None] * levels).sum(dim=0)
    return {
        name: value
        for level in range(NUM_LEVELS)
        for name, value in ((f"error_t{level}", errors[level]), (f"images_t{level}", images[level]))
    }


class GradientGroups:
    """Parameters by what they are part of."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._groups: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
        for name, parameter in named:
            if parameter.requires_grad:
                self._groups[group_of(name)].append(parameter)

    def sums(self) -> dict[str, Tensor]:
        """Sums of squares over this rank's part of the gradients; to be added up over ranks."""
        found = {}
        for group, parameters in self._groups.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norms = torch.stack(torch._foreach_norm([local(grad) for grad in gradients]))
                squares = norms.double().square().sum()
                found[f"grad_{group}"] = squares / num_copies(gradients[0])
        return found


def group_of(name: str) -> str:
    """The group of a parameter of a `TransfusionModel`."""
    parts = name.split(".")
    if parts[0] == "embedding":
        return "embeddings"
    if parts[0] == "blocks":
        return "ffn" if any(part.startswith("ffn") for part in parts) else "attention"
    return "adapter" if parts[0] in ("down", "up", "skip") else "head"


def measured(sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Values of the global batch. What it has nothing of has no value: a level without images has no loss.

    Args:
        sums: Over all ranks.
        counts: Text targets and images of the global batch.
    """
    values = {}
    for level in range(NUM_LEVELS):
        images = sums[f"images_t{level}"]
        values[f"images_t{level}"] = images
        if images:
            values[f"diffusion_loss_t{level}"] = sums[f"error_t{level}"] / images
    squares = {group: sums[f"grad_{group}"] for group in GROUPS if f"grad_{group}" in sums}
    values["grad_norm"] = math.sqrt(sum(squares.values()))
    values |= {f"grad_norm_{group}": math.sqrt(square) for group, square in squares.items()}
    codes = sums.get("code_tokens", 0.0)
    for kind, count in (
        ("text", counts["text_tokens"] - codes),
        ("image", counts["images"] + codes),
    ):
        if count:
            values[f"stream_rms_{kind}"] = math.sqrt(sums[f"{kind}_size"] / count)
    return values


class Stopwatch:
    """Time between marks on the clock of the device: of the wall, or of the GPU's stream."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._names: list[str] = []
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self, name: str = "") -> None:
        """What follows, up to the next mark, is `name`; without a name it is not counted."""
        self._names.append(name)
        if self._is_cuda:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            self._times.append(time.perf_counter())

    def seconds(self, names: Sequence[str]) -> list[float]:
        """Sums by name, once the device has come past the last mark."""
        if self._is_cuda:
            lengths = [
                float(began.elapsed_time(ended)) / 1e3 for began, ended in pairwise(self._events)
            ]
        else:
            lengths = [ended - began for began, ended in pairwise(self._times)]
        total = dict.fromkeys(names, 0.0)
        for name, length in zip(self._names, lengths, strict=False):
            if name in total:
                total[name] += length
        return list(total.values())
