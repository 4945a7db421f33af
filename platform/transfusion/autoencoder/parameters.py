"""How many parameters an autoencoder has, by formula and without torch; the tests hold it against diffusers."""

from itertools import pairwise

from transfusion.autoencoder.config import AutoencoderConfig


def num_parameters(config: AutoencoderConfig) -> int:
    """Of encoder, decoder and, where there is one, the codebook."""
    channels, latent = config.block_channels, config.latent_channels
    first, last = channels[0], channels[-1]
    quantized = config.codebook_size is not None
    # A KL encoder gives means and variances.
    encoded = latent if quantized else 2 * latent
    total = _convolution(3, first) + _middle(config) + _norm(last) + _convolution(last, encoded)
    total += _convolution(encoded, encoded, side=1) + _convolution(latent, latent, side=1)
    total += _convolution(latent, last) + _middle(config) + _norm(first) + _convolution(first, 3)
    total += _levels(channels, config.layers_per_block)
    total += _levels(channels[::-1], config.layers_per_block + 1)
    return total + (config.codebook_size or 0) * latent


def _levels(channels: tuple[int, ...], layers: int) -> int:
    """One way: residual layers, a level's first changes the width, and a convolution between two levels."""
    between = sum(_convolution(width, width) for width in channels[:-1])
    if layers == 0:
        return between
    firsts = sum(_residual(*pair) for pair in pairwise((channels[0], *channels)))
    return between + firsts + (layers - 1) * sum(_residual(width, width) for width in channels)


def _middle(config: AutoencoderConfig) -> int:
    width = config.block_channels[-1]
    attention = _norm(width) + 4 * _convolution(width, width, side=1)
    return 2 * _residual(width, width) + (attention if config.attention == "middle" else 0)


def _residual(before: int, after: int) -> int:
    total = _norm(before) + _convolution(before, after) + _norm(after) + _convolution(after, after)
    return total + (_convolution(before, after, side=1) if before != after else 0)


def _convolution(before: int, after: int, *, side: int = 3) -> int:
    return side**2 * before * after + after


def _norm(width: int) -> int:
    return 2 * width
