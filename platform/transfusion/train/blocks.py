"""Checkpointing and compilation of a model's blocks, from outside: no weight gets another name.

Each takes the place of `forward` alone, so that hooks (FSDP's, measures') stay around it: weights are gathered
before what is computed anew, and no hook is traced. Plain torch.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from transfusion.model.blockwise import BlockwiseAttention

ActivationCheckpointing = Literal["none", "selective", "full"]

_aten = torch.ops.aten
KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
    }
)
"""What selective checkpointing keeps, since it is dear to compute: products with weights, and fused attention
(FlexAttention in compiled blocks alone: outside of them nothing sees into its kernel, and it is computed again).
Batched products are not among them: scores of attention written out are larger than all else together."""


MAX_SHAPES = 64
"""That may be compiled of one code: levels of a U-Net, there and back, in training and in validation."""


def checkpoint_blocks(blocks: Iterable[nn.Module], how: ActivationCheckpointing) -> None:
    """Keeps less of each block's forward for its backward, which computes the rest anew: the same to the bit."""
    if how == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, **options)


def _policy(_context: object, op: object, *_: object, **__: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(
    blocks: Iterable[nn.Module], *, backend: str = "inductor", fullgraph: bool = False
) -> None:
    """Compiles each block; to be called after `checkpoint_blocks`, so that what is kept is decided in the graph.

    Blocks that are alike share one compilation; those of a U-Net are of as many shapes as it has levels. On CPU,
    where attention stays outside the graph, blocks that are also checkpointed run uncompiled.

    Args:
        fullgraph: Whether it is an error that a block is not one graph.
    """
    # Torch gives up at 8, which blocks of other shapes that share their code count towards.
    limit = max(torch._dynamo.config.recompile_limit, MAX_SHAPES)
    torch._dynamo.config.recompile_limit = limit
    for block in blocks:
        compiled = torch.compile(block.forward, dynamic=False, backend=backend, fullgraph=fullgraph)
        block.forward = _Compiled(compiled)


class _Compiled:
    """A forward of static shapes. What attention does on CPU hangs on each batch: it stays outside the graph."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(kwargs.get("attend"), BlockwiseAttention):
            kwargs["attend"] = _Opaque(kwargs["attend"])
        return self._forward(*args, **kwargs)


class _Opaque:
    """Attention that is called, not traced."""

    def __init__(self, attend: BlockwiseAttention) -> None:
        self._attend = attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _untraced(self._attend, q, k, v)


@torch.compiler.disable
def _untraced(attend: BlockwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v)
