"""Where a model's parameters are, and how often each is multiplied: one list, by formula and without torch.

`named_parameters` of the module and PyTorch's counter of FLOPs are what the tests hold it against.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from transfusion.diffusion.config import VarianceName
from transfusion.model.config import ModelConfig, UNetConfig

Unit = Literal["position", "text_row", "image"]

SINUSOID_DIM = 256
"""Width of the sinusoid that every embedding of the timestep starts from (`model.time`)."""

SKIP_TIME_DIM = 64
"""Width of the embedding of the timestep in `model.skip`."""


class Part(NamedTuple):
    """Weights that are used together."""

    name: str
    """As in the module, with all blocks as one: `blocks.attention`, `down.levels`."""

    products: int
    """Weights of matrices and convolutions: 2 FLOPs each, each time they are used."""

    others: int
    """Biases, gains of norms, and the table of embeddings: no products."""

    per: Unit
    """What they are used for."""

    uses: int = 1
    """Times for each of `per`: an image has many pixels and patches."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.products + self.others


def list_parts(
    config: ModelConfig,
    *,
    vocab_size: int,
    latent_shape: tuple[int, int, int],
    variance: VarianceName = "fixed",
) -> list[Part]:
    """The parts of a `TransfusionModel`.

    Args:
        latent_shape: Channels, height and width; the sides decide only how often image weights are used.
    """
    channels, height, width = latent_shape
    dim, depth = config.dim, config.depth
    heads = config.num_heads + 2 * config.kv_heads
    attention = dim * heads * config.head_dim + dim * dim
    gains = 2 * depth * dim + (2 * depth * config.head_dim if config.qk_norm == "rms" else 0)
    adapter = _linear if config.adapter == "linear" else _unet
    predicted = channels * (1 if variance == "fixed" else 2)
    parts = [
        Part("embedding", 0, vocab_size * dim, "position"),
        Part("blocks.attention", depth * attention, 0, "position"),
        Part("blocks.ffn", depth * 3 * dim * config.hidden_dim, 0, "position"),
        Part("norms", 0, gains + dim, "position"),
        Part("head", dim * vocab_size, 0, "text_row"),
        *adapter(config, channels, predicted, height, width),
    ]
    if config.weights == "by_modality":
        # A position goes through its own modality's weights, as many as the others': nothing is multiplied twice.
        again = depth * (attention + 3 * dim * config.hidden_dim) + gains + dim
        parts.append(Part("blocks.image", 0, again, "position"))
    if config.noisy_skip == "gated":
        parts += [
            _time("skip.time", SKIP_TIME_DIM),
            Part("skip.gains", SKIP_TIME_DIM * 2 * channels, 2 * channels, "image"),
        ]
    return parts


def _time(name: str, dim: int) -> Part:
    return Part(name, SINUSOID_DIM * dim + dim * dim, 2 * dim, "image")


def _linear(
    config: ModelConfig, channels: int, predicted: int, height: int, width: int
) -> Iterator[Part]:
    size, dim = config.patch_size, config.dim
    patch_dim, out_dim = channels * size**2, predicted * size**2
    patches = (height // size) * (width // size)
    yield Part("down.project", patch_dim * dim, dim, "image", patches)
    yield _time("down.time", patch_dim if config.time_embedding == "patch" else dim)
    yield Part("up.project", dim * out_dim, out_dim, "image", patches)
    if config.image_head == "adaln":
        yield _time("up.time", dim)
        yield Part("up.modulation", 2 * dim * dim, 2 * dim, "image")


def _unet(
    config: ModelConfig, channels: int, predicted: int, height: int, width: int
) -> Iterator[Part]:
    unet = config.unet
    pixels = [(height >> level) * (width >> level) for level in range(len(unet.channels))]
    first, last = unet.channels[0], unet.channels[-1]
    for way in ("down", "up"):
        yield _time(f"{way}.time", unet.time_dim)
        for width_of_level, area in zip(unet.channels, pixels, strict=True):
            from_channels = width_of_level if way == "down" else 2 * width_of_level
            yield from _blocks(way, unet, from_channels, width_of_level, area)
    for (wide, narrow), area in zip(pairwise(unet.channels), pixels[1:], strict=True):
        yield Part("down.halvings", 4 * wide * narrow, narrow, "image", area)
        yield Part("up.doublings", narrow * 4 * wide, 4 * wide, "image", area)
    yield Part("down.conv_in", 9 * channels * first, first, "image", pixels[0])
    yield Part("down.project", last * config.dim, config.dim + 2 * last, "image", pixels[-1])
    yield Part("up.project_in", config.dim * last, last, "image", pixels[-1])
    yield Part("up.conv_out", 9 * first * predicted, predicted + 2 * first, "image", pixels[0])


def _blocks(
    way: str, unet: UNetConfig, from_channels: int, to_channels: int, area: int
) -> Iterator[Part]:
    """The residual blocks of a level: two convolutions, their norms, a 1 x 1 where the width changes."""
    convolutions = 9 * from_channels * to_channels + 9 * to_channels**2
    vectors = 2 * to_channels + 2 * from_channels + 2 * to_channels
    if from_channels != to_channels:
        convolutions += from_channels * to_channels
        vectors += to_channels
    yield Part(f"{way}.levels", unet.blocks * convolutions, unet.blocks * vectors, "image", area)
    time = unet.blocks * unet.time_dim * to_channels
    yield Part(f"{way}.levels", time, unet.blocks * to_channels, "image")
