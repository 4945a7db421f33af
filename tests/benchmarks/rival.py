"""lucidrains' transfusion-pytorch, where it is installed: the public implementation that we are timed beside."""

import contextlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOTICE = (
    "transfusion-pytorch is not installed: not compared with it (pip install transfusion-pytorch)"
)


def is_here() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("transfusion_pytorch") is not None


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the two have in common."""

    dim: int = 256
    depth: int = 4
    num_heads: int = 4
    num_pieces: int = 1024
    latent_dim: int = 32
    """Numbers in a patch."""
    side: int = 8
    """Patches along the side of an image."""


def make_rival(size: Size) -> Any:
    """Its model at that size, with its own defaults for everything else."""
    from transfusion_pytorch import Transfusion

    torch.manual_seed(0)
    model = Transfusion(
        num_text_tokens=size.num_pieces,
        dim_latent=size.latent_dim,
        modality_default_shape=(size.side, size.side),
        modality_num_dim=2,
        add_pos_emb=False,
        transformer={
            "dim": size.dim,
            "depth": size.depth,
            "heads": size.num_heads,
            "dim_head": size.dim // size.num_heads,
        },
    )
    with torch.no_grad():
        # No special token is ever the likeliest: text goes on to the length that is asked for.
        model.to_text_logits.weight[size.num_pieces :] = 0
    return model


def documents(size: Size, *, count: int, images: int, text_tokens: int) -> list[list[Tensor]]:
    """Text, image, text, image ...: what both train on."""
    torch.manual_seed(0)
    return [
        [
            part
            for _ in range(images)
            for part in (
                torch.randint(0, size.num_pieces, (text_tokens,)),
                torch.randn(size.side, size.side, size.latent_dim),
            )
        ]
        for _ in range(count)
    ]


def make_step(model: Any, batch: list[list[Tensor]]) -> Callable[[], None]:
    """Forward, backward, AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def sampling(
    model: Any, size: Size, method: str, kind: str, count: int, *, prefix: int, length: int
) -> Callable[[], None]:
    """Samples `count` images of `length` evaluations, two a midpoint step, or texts of as many tokens.

    Args:
        method: `sample_one`, which runs whole sequences; that with a cache; or `sample_many`.
        prefix: Positions of the prompt, its first token included.
    """
    if importlib.util.find_spec("loguru"):
        from loguru import logger

        logger.disable("transfusion_pytorch")
    prompt = torch.arange(prefix - 1)
    given: dict[str, Any] = (
        {
            "force_modality_at_start": (0, (size.side, size.side)),
            "modality_steps": 1 + length // 2,
            "max_length": size.side**2 - 1,
            "cfg_scale": 3.0,
        }
        if kind == "image"
        else {"max_length": length - 1, "text_temperature": 0.0}
    )

    def sample() -> None:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            if method == "sample_many":
                model.sample_many([prompt] * count, **given)
                return
            cached = {"cache_kv": True} if method.endswith("with a cache") else {}
            for _ in range(count):
                model.sample_one(prompt, **cached, **given)

    return sample
