"""Named sizes. The paper's five, and two that run on a laptop.

Source: Zhou et al. 2024, arXiv:2408.11039, Table 2; feed-forward widths follow Llama's rule. Each comes
with the linear adapter and, as `NAME-unet`, with a U-Net of about 0.27 B parameters.
"""

from collections.abc import Mapping
from types import MappingProxyType

from transfusion.model.config import ModelConfig, UNetConfig

PAPER_UNET = UNetConfig(channels=(512, 1024), blocks=4, time_dim=1024)


def _paper(dim: int, depth: int, num_heads: int) -> ModelConfig:
    return ModelConfig(dim=dim, depth=depth, num_heads=num_heads, time_embedding="patch")


_PAPER: Mapping[str, ModelConfig] = {
    #                dim  depth  heads
    "0.16B": _paper(768, 16, 12),
    "0.37B": _paper(1024, 24, 16),
    "0.76B": _paper(1536, 24, 24),
    "1.4B": _paper(2048, 24, 16),
    "7B": _paper(4096, 32, 32),
}

PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        **_PAPER,
        **{
            f"{name}-unet": config.model_copy(update={"adapter": "unet", "unet": PAPER_UNET})
            for name, config in _PAPER.items()
        },
        "quickstart": ModelConfig(
            dim=160,
            depth=4,
            num_heads=5,
            adapter="unet",
            unet=UNetConfig(channels=(48, 96), time_dim=128),
            patch_positions="sinusoidal_2d",
            noisy_skip="gated",
        ),
        "tiny": ModelConfig(
            dim=64,
            depth=2,
            num_heads=2,
            adapter="unet",
            unet=UNetConfig(channels=(16, 32), time_dim=32),
        ),
    }
)
