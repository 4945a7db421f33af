"""Named sizes: the five of the Transfusion paper, MonoFormer's, and small ones that run on two cores.

Sources: Zhou et al. 2024, arXiv:2408.11039, Table 2, with feed-forward widths by Llama's rule; Zhao et al. 2024,
arXiv:2409.16280, which starts from TinyLlama-1.1B and has parts of its own. `preset` gives each with any patch
size and either adapter, MonoFormer with its own alone; `transfusion show --preset` prints parameters and FLOPs of
all. Whether patches see all of their image is the plan's (`SequenceLayout.image_attention`), for a model has no
weights for it.

The paper says that its U-Net adds 0.27 B to every size: 106.1, 71.3, 35.5, 19.3 and 3.8%. It publishes no layout.
Ours has 0.26 to 0.28 B, which are 164.7, 71.7, 34.6, 19.8 and 4.1% at patches of 2 x 2. The paper's own shares
come to 172, 267, 276, 263 and 256 M of these sizes. So the first share cannot be of 0.27 B (that would be 166.1%),
and the others shrink although the layer that meets the transformer grows: they are shares of rounded sizes.

Its linear adapter adds 0.5, 0.4, 0.4, 0.4 and 0.3%. `time_embedding: mlp` gives just these. With `patch`, which is
what its footnote 6 describes and what these presets hold, it is a tenth of that at patches of 2 x 2; only 0.16B at
8 x 8 is above half a percent (0.73%), by the embedding of the timestep, as wide as a patch.
"""

from collections.abc import Mapping
from types import MappingProxyType

from transfusion.config import suggestion
from transfusion.errors import SpecError
from transfusion.model.config import AdapterName, ModelConfig, UNetConfig

PATCH_SIZES = (1, 2, 4, 8)

PAPER_UNETS: Mapping[int, UNetConfig] = MappingProxyType(
    {
        1: UNetConfig(channels=(1152,), blocks=4, time_dim=1024),
        2: UNetConfig(channels=(512, 1024), blocks=4, time_dim=1024),
        4: UNetConfig(channels=(256, 512, 1024), blocks=4, time_dim=256),
        8: UNetConfig(channels=(128, 256, 512, 1024), blocks=4, time_dim=256),
    }
)
"""About 0.27 B parameters at every patch size, one level more for each halving."""

LLAMA_VOCABULARY = 32_005
"""Llama's 32,000 pieces and the five special tokens: what the sizes are named after."""


def _paper(dim: int, depth: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        dim=dim, depth=depth, num_heads=num_heads, time_embedding="patch", unet=PAPER_UNETS[2]
    )


_TINYLLAMA = ModelConfig(
    dim=2048, depth=22, num_heads=32, num_kv_heads=4, ffn_dim=5632, unet=PAPER_UNETS[2]
)

_SIZES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        #                dim  depth  heads
        "0.16B": _paper(768, 16, 12),
        "0.37B": _paper(1024, 24, 16),
        "0.76B": _paper(1536, 24, 24),
        "1.4B": _paper(2048, 24, 16),
        "7B": _paper(4096, 32, 32),
        "TinyLlama-1.1B": _TINYLLAMA,
        "MonoFormer-1.1B": _TINYLLAMA.model_copy(
            update={
                "time_embedding": "token",
                "image_head": "adaln",
                "patch_positions": "sinusoidal_2d",
            }
        ),
        "small": ModelConfig(
            dim=256,
            depth=6,
            num_heads=8,
            adapter="unet",
            unet=UNetConfig(channels=(64, 128), time_dim=128),
            patch_positions="sinusoidal_2d",
            noisy_skip="gated",
        ),
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
"""Each as its source has it, or as it serves best where it is ours."""

NAMES: tuple[str, ...] = tuple(_SIZES)


def adapters(name: str) -> tuple[AdapterName, ...]:
    """Those that a size of `NAMES` can have, its own first."""
    config = _SIZES[name]
    if config.time_token or config.image_head != "linear":
        return ("linear",)
    return ("linear", "unet") if config.adapter == "linear" else ("unet", "linear")


def preset(
    name: str, *, patch_size: int | None = None, adapter: AdapterName | None = None
) -> ModelConfig:
    """A size with another patch size or adapter; the U-Net then gets the levels that the patch needs.

    Args:
        name: One of `NAMES`, or `NAME-unet`.

    Raises:
        SpecError: There is no such size, it cannot have the adapter, or the patch is no power of two.
    """
    size = name.removesuffix("-unet")
    config = _SIZES.get(size)
    if config is None:
        raise SpecError(f"preset: there is no {name!r}{suggestion(name, NAMES)}")
    adapter = adapter or ("unet" if size != name else config.adapter)
    if adapter not in adapters(size):
        raise SpecError(
            f"preset {name}: its token of t and its head are the linear adapter's, got adapter {adapter!r}; "
            "leave the adapter out"
        )
    patch_size = patch_size or config.patch_size
    if patch_size not in PATCH_SIZES:
        raise SpecError(
            f"preset {name}: patch must be one of {', '.join(map(str, PATCH_SIZES))}, got {patch_size}"
        )
    changed = {"patch_size": patch_size, "adapter": adapter, "unet": _unet(config, patch_size)}
    if adapter == "linear":
        # It says nothing of the model then, and a job need not hold it.
        changed["unet"] = UNetConfig()
    # Validated anew, which a copy with updates is not.
    return ModelConfig.model_validate(dict(config) | changed)


def _unet(config: ModelConfig, patch_size: int) -> UNetConfig:
    """From the table for the large sizes; else the coarsest level stays and each finer one is half as wide."""
    if config.unet == PAPER_UNETS[2]:
        return PAPER_UNETS[patch_size]
    levels = patch_size.bit_length()
    last = config.unet.channels[-1]
    channels = tuple(last >> level for level in reversed(range(levels)))
    return config.unet.model_copy(update={"channels": channels})


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        **{name: preset(name) for name in NAMES},
        **{
            f"{name}-unet": preset(f"{name}-unet")
            for name in NAMES
            if adapters(name) == ("linear", "unet")
        },
    }
)
"""Sizes at their own patch size, and with the U-Net as `NAME-unet`."""
