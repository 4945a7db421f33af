"""First values of every weight, drawn on CPU from the seed and the weight's name alone.

So the values depend neither on device and sharding nor on the order of modules, and a new option that
adds a weight leaves the others as they were.
"""

import hashlib
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

HEAD_STD = 0.02
"""Of the language head: logits start near zero, and the loss near log of the vocabulary."""

_START_SMALL = re.compile(
    r"up\.(project|conv_out|modulation)\.weight|(down|up)\.levels\..*\.conv_out\.weight"
)
"""The last matrix before the noise, and of each residual block: the U-Net starts near the identity.
Blocks at full scale cost a seventh of the loss after 200 steps."""


@torch.no_grad()
def initialize(model: nn.Module, draw: Callable[[str, torch.Size], Tensor]) -> None:
    """Fills every parameter of a model that is not sharded with what is drawn by its name."""
    for name, parameter in model.named_parameters():
        parameter.copy_(draw(name, parameter.shape))


def initial_weight(name: str, shape: torch.Size, *, depth: int, seed: int) -> Tensor:
    """The first value of one parameter, in fp32 on CPU, by its full name in a `TransfusionModel`."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator) * _std(name, shape, depth)


def _std(name: str, shape: torch.Size, depth: int) -> float:
    if name.startswith("embedding."):
        return 1.0
    if name.startswith("head."):
        return HEAD_STD
    if name.startswith(("down.", "up.", "skip.")):
        # Adapters take their scale from the width that comes in: a patch of 32 numbers at .02 would be lost.
        scale = 1.0 / math.sqrt(math.prod(shape[1:]))
        return 0.1 * scale if _START_SMALL.fullmatch(name) else scale
    # The .02 that is usual at a width of about 800 follows the width here: at 160 it would leave attention flat
    # and what blocks add a fiftieth of the stream, and an image's patches would long not heed their caption.
    scale = 1.0 / math.sqrt(3 * shape[1])
    if name.endswith((".attention.out.weight", ".ffn.out.weight")):
        return scale / math.sqrt(2 * depth)
    return scale
