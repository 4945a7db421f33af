"""A model compiled for an engine whose steps are in buckets: all but attention, where shapes change every token.

What treats every row alone is compiled, a shape at a time: norms and products around attention, and the
feed-forward. With `reduce-overhead` each such piece is one CUDA graph. Not yet measured on CUDA.
"""

import torch

from transfusion.model.blocks import Block, Layer
from transfusion.model.transformer import TransfusionModel
from transfusion.sample.batch import bucket_of

MAX_SHAPES = 512
"""That may be compiled of a piece. Torch gives up at 8; buckets are 8 for each doubling of a step's rows."""


def compile_rows(
    model: TransfusionModel, *, backend: str = "inductor", mode: str | None = None
) -> None:
    """Compiles the layers in place.

    Args:
        mode: Of inductor: `reduce-overhead` records CUDA graphs.
    """
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MAX_SHAPES
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


@torch.inference_mode()
def compile_ahead(model: TransfusionModel, *, max_positions: int) -> None:
    """Compiles every shape up to a step of so many positions, which an engine in buckets would meet one by one.

    Raises:
        ValueError: Patches have weights of their own: how many rows are whose is in no bucket.
    """
    weight = next(model.parameters())
    rows = 1
    while rows <= bucket_of(max_positions):
        for block in model.blocks:
            assert isinstance(block, Block)
            if block.image is not None:
                raise ValueError(
                    "weights: by_modality cannot be compiled ahead, for its steps have shapes without end; "
                    "must be shared"
                )
            config = block.config
            stream = weight.new_zeros(1, rows, config.dim)
            block.heads(stream)
            block.mixed(weight.new_zeros(1, rows, config.num_heads * config.head_dim))
            block.fed(stream)
        rows = bucket_of(rows + 1)
