"""A model compiled for an engine whose steps are in buckets: all but attention, where shapes change every token.

What treats every row alone is compiled, a shape at a time: norms and products around attention, and the
feed-forward. With `reduce-overhead` each such piece is one CUDA graph. Not yet measured on CUDA.
"""

import torch

from transfusion.model.blocks import Block, Layer
from transfusion.model.transformer import TransfusionModel


def compile_rows(
    model: TransfusionModel, *, backend: str = "inductor", mode: str | None = None
) -> None:
    """Compiles the layers in place.

    Args:
        mode: Of inductor: `reduce-overhead` records CUDA graphs.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        layers: tuple[Layer | None, ...] = (block, block.image)
        for layer in layers:
            if layer is None:
                continue
            for name in ("heads", "mixed", "fed"):
                piece = getattr(layer, name)
                # No graph breaks: a piece is a graph, or it is told.
                made = torch.compile(
                    piece, dynamic=False, fullgraph=True, backend=backend, mode=mode
                )
                setattr(layer, name, made)
