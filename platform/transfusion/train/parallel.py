"""Sharding, precision and averaged weights, applied to a model from outside. Plain torch."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from transfusion.errors import ArtifactError
from transfusion.train.loop_config import Precision

log = logging.getLogger(__name__)


def data_mesh(device: torch.device, *, shard_group_size: int | None = None) -> DeviceMesh:
    """All ranks in one dimension, or in groups: of these FSDP2 shards in the second and copies in the first.

    Raises:
        ArtifactError: The ranks do not come out even in groups of that size.
    """
    world_size = dist.get_world_size()
    if shard_group_size in (None, world_size):
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("data",))
    groups, left = divmod(world_size, shard_group_size)
    if left:
        raise ArtifactError(
            f"{world_size} workers in groups of {shard_group_size}: {left} would be left over; set "
            f"train.shard_group_size in the profile to a divisor of {world_size}, or leave it out"
        )
    return init_device_mesh(
        device.type, (groups, shard_group_size), mesh_dim_names=("copies", "data")
    )


def set_precision(precision: Precision, *, device: torch.device, cpu_threads: int) -> None:
    """Fixes, for this process, what decides the bits of a result: threads and inner precision."""
    torch.set_num_threads(cpu_threads)
    inner = precision != "fp32"
    torch.set_float32_matmul_precision("medium" if inner else "highest")
    # `set_float32_matmul_precision` leaves convolutions in TF32 on CUDA, and does not reach them on CPU.
    torch.backends.cudnn.conv.fp32_precision = "tf32" if inner else "ieee"  # type: ignore[attr-defined]
    if device.type == "cpu":
        backend: Any = torch.backends.mkldnn
        backend.conv.fp32_precision = "bf16" if inner else "ieee"
        if precision == "bf16" and not cpu_has_bf16():
            log.warning(
                "precision bf16: this CPU has no bf16 arithmetic and emulates it, about 50 times slower than "
                "fp32; use fp32 or fp32_bf16_inner here"
            )


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively; `avx512_bf16` or AMX on x86, `bf16` on Arm."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def shard(
    model: nn.Module, *, blocks: Iterable[nn.Module], mesh: DeviceMesh, precision: Precision
) -> None:
    """Shards each block, then the rest, over the mesh (FSDP2), in place.

    Inputs are never cast: a timestep in bf16 would keep 507 of 1,000 values apart.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        output_dtype=None,
        cast_forward_inputs=False,
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def reshard(model: nn.Module) -> None:
    """Frees the gathered weights that a forward without a backward leaves behind.

    They would hide the sharded ones, and a change of those would not be seen by the next forward.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def hold_gathered(model: nn.Module, *, after_backward: bool) -> None:
    """Has gathered weights stay after a forward, and after the next backward or not: for further micro-batches."""
    assert isinstance(model, FSDPModule)
    model.set_reshard_after_forward(False)
    model.set_reshard_after_backward(not after_backward)


def add_up_copies(model: nn.Module, *, after_backward: bool) -> None:
    """Whether groups of ranks that hold copies add up their gradients after the next backward, or keep them."""
    assert isinstance(model, FSDPModule)
    model.set_requires_all_reduce(after_backward)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and convolutions are decayed; norms, biases and embeddings are not. What is frozen is in no group.

    `model.lr_scales`, where it is set, holds rates by parameter name against the run's: `lr_scale` of a group. So
    does `model.decay_scales` of the decay.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    scales: Mapping[str, float] = getattr(model, "lr_scales", {})
    decays: Mapping[str, float] = getattr(model, "decay_scales", {})
    alike: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            key = (not matrix, scales.get(name, 1.0), decays.get(name, 1.0))
            alike.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (undecayed, scale, decay), parameters in sorted(alike.items(), key=lambda group: group[0]):
        decayed = 0.0 if undecayed else decay * weight_decay
        groups.append({"params": parameters, "weight_decay": decayed})
        if scale != 1:
            groups[-1]["lr_scale"] = scale
    return groups


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_copies(tensor: Tensor) -> int:
    """How many ranks hold each element of it: what a sum over all ranks counts it."""
    if not isinstance(tensor, DTensor):
        return dist.get_world_size()
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_replicate())


class AveragedWeights:
    """Exponential moving average of a model's weights, sharded as they are, in fp32."""

    def __init__(self, model: nn.Module, *, kept: bool = True) -> None:
        """Begins with the weights as they are.

        Args:
            kept: Otherwise the average is the weights themselves, in the same memory: that of a decay of 0.
        """
        self._model = model
        self.kept = kept
        self.weights = {
            name: parameter.detach().clone() if kept else parameter.detach()
            for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, *, decay: float) -> None:
        """Sets average = decay * average + (1 - decay) * weights."""
        for name, parameter in self._model.named_parameters():
            local(self.weights[name]).lerp_(local(parameter), 1.0 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swaps the average and the model's weights; twice is nothing, to the bit."""
        for name, parameter in self._model.named_parameters():
            average, current = local(self.weights[name]), local(parameter)
            held = current.clone()
            current.copy_(average)
            average.copy_(held)


def full(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank, where its shards are; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on CPU, on rank 0 only; every rank must call it. One tensor is gathered at a time."""
    whole: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        gathered = full(tensor)
        if dist.get_rank() == 0:
            whole[name] = gathered.detach().to("cpu", copy=True)
    return whole


def fill(model: nn.Module, weights: dict[str, Any]) -> None:
    """Sets a sharded model's weights from whole ones that rank 0 holds; the others hand in nothing."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
    set_model_state_dict(model, weights, options=options)


@torch.no_grad()
def fill_in_turns(model: nn.Module, draw: Callable[[str, torch.Size], Tensor]) -> None:
    """Sets a sharded model's weights to what is drawn by their names; every rank must call it.

    Ranks draw side by side, each a share of the names, and hand them on one after the other: of several none ever
    holds the model, and a large one is drawn in the time of a share. One alone draws as it goes.
    """
    weights = dict(model.named_parameters())
    world_size, rank = dist.get_world_size(), dist.get_rank()
    names = list(weights)
    ahead = names[rank::world_size] if world_size > 1 else []
    mine = {name: draw(name, weights[name].shape) for name in ahead}
    for index, name in enumerate(names):
        weight = weights[name]
        assert isinstance(weight, DTensor), name
        whole = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        if index % world_size == rank:
            whole.copy_(mine.pop(name) if ahead else draw(name, weight.shape))
        dist.broadcast(whole, src=index % world_size)
        part = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.to_local().copy_(part.to_local())


def all_sum(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over ranks in fp64, in one message between hosts, which waits for no GPU."""
    names = sorted(values)
    vector = torch.tensor([values[name] for name in names], dtype=torch.float64)
    dist.all_reduce(vector)
    return dict(zip(names, vector.tolist(), strict=True))


def lanes_of(rank: int, *, world_size: int, lanes: int) -> list[int | None]:
    """The lanes that a rank runs in a step; None is a zero-weight micro-batch, so that ranks keep step.

    Every rank runs ceil(lanes / world_size), because each forward is a collective.
    """
    count = -(-lanes // world_size)
    owned: list[int | None] = list(range(rank, lanes, world_size))
    return owned + [None] * (count - len(owned))
