"""Whether sizes fit an autoencoder and a mixture of the same job: asked before anything is made.

Of an autoencoder that the job loads nothing is known before it is there.
"""

from collections.abc import Mapping

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.mix.config import MixConfig
from data_pipelines.tokenize_images.config import TokenizeImagesConfig
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.stage import Upstream


def encoding_faults(
    config: EncodeImagesConfig | TokenizeImagesConfig, inputs: Mapping[str, Upstream]
) -> list[str]:
    """Whether crops are of whole latent positions."""
    downsampling = _downsampling(inputs["autoencoder"])
    if downsampling is None:
        return []
    return [
        f"{'.buckets' if getattr(config, 'buckets', None) else '.image_size_px'}: sides must be multiples of "
        f"{downsampling}, the autoencoder's downsampling, got {height} x {width}"
        for height, width in config.sizes_px
        if height % downsampling or width % downsampling
    ]


def mixture_faults(config: MixConfig, inputs: Mapping[str, Upstream]) -> list[str]:
    """Whether latents are of whole patches."""
    found = []
    patch_size = config.layout.patch_size
    for name, source in config.sources.items():
        latents = inputs[source.latents] if source.latents else None
        if latents is None or not isinstance(latents.config, EncodeImagesConfig):
            continue
        downsampling = _downsampling(latents.inputs["autoencoder"])
        if downsampling is None:
            continue
        found += [
            f".layout.patch_size: must divide the sides of latents, got {patch_size} and latents of "
            f"{height // downsampling} x {width // downsampling} in the source {name!r}"
            for height, width in latents.config.sizes_px
            if (height // downsampling) % patch_size or (width // downsampling) % patch_size
        ]
    return found


def _downsampling(autoencoder: Upstream) -> int | None:
    network = getattr(autoencoder.config, "network", None)
    return network.downsampling if isinstance(network, AutoencoderConfig) else None
