"""Named shapes of autoencoders; `transfusion show --preset NAME` prints one as the `network` of a job.

The paper gives its autoencoder's size, channels and downsampling (Zhou et al. 2024, arXiv:2408.11039, section 4.1
and appendix A: 86 M parameters after Esser et al., 8 channels, 256 px to 32 x 32), no layout. What is here is the
usual one of that kind (Stable Diffusion's, 83.65 M with 4 channels) with 8 channels: 83.7 M, 2.7% below the
label. The codebook of the other is the paper's, 16,384 vectors of 8 numbers.
"""

from collections.abc import Mapping
from types import MappingProxyType

from transfusion.autoencoder.config import AutoencoderConfig

_F8 = AutoencoderConfig(
    block_channels=(128, 256, 512, 512),
    layers_per_block=2,
    attention="middle",
    latent_channels=8,
    norm_groups=32,
)

PRESETS: Mapping[str, AutoencoderConfig] = MappingProxyType(
    {
        "kl-f8-86M": _F8,
        "vq-f8-86M": _F8.model_copy(update={"codebook_size": 16_384}),
    }
)
"""Shapes by name."""
