"""The U-Net adapter: residual levels before the transformer and after it, with a long skip round it.

    latent                          noise
    level 0 ------- skips ------- level 0
     halve                         double
    level 1 ------- skips ------- level 1
    vectors --- transformer ----- vectors

Plain norms; the timestep is added inside each residual block, on both ways. Convolutions see one image
only. Halving and doubling move 2 x 2 pixels into channels and back: what the transformer says of a patch
reaches each of its pixels, at a ninth of the work of convolutions over an enlarged map and no worse a loss.
Source: Zhou et al. 2024, arXiv:2408.11039, footnote 7 (no block-level description is published). Theirs has
attention within it (section 4.3.1) and layer norms; here are convolutions alone, with group norms, at the same
number of parameters.
Axes: m = images, c h w = a feature map, p = patches, d = width of the transformer, t = width of the
time embedding.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.model.config import ModelConfig
from transfusion.model.images import EncodedImages
from transfusion.model.time import TimeMLP


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1)), channels)


def _conv(from_channels: int, to_channels: int) -> nn.Conv2d:
    return nn.Conv2d(from_channels, to_channels, 3, padding=1)


class ResidualBlock(nn.Module):
    """Two convolutions, with the timestep added between them."""

    def __init__(self, from_channels: int, to_channels: int, time_dim: int) -> None:
        super().__init__()
        self.norm = _norm(from_channels)
        self.conv = _conv(from_channels, to_channels)
        self.time = nn.Linear(time_dim, to_channels)
        self.norm_out = _norm(to_channels)
        self.conv_out = _conv(to_channels, to_channels)
        self.skip = (
            nn.Identity()
            if from_channels == to_channels
            else nn.Conv2d(from_channels, to_channels, 1)
        )

    def forward(
        self, x: Float[Tensor, "m c h w"], time: Float[Tensor, "m t"]
    ) -> Float[Tensor, "m c2 h w"]:
        """The map with its residual added."""
        y = self.conv(F.silu(self.norm(x)))
        y = y + rearrange(self.time(time), "m c -> m c 1 1")
        y = self.conv_out(F.silu(self.norm_out(y)))
        return self.skip(x) + y


class UNetDown(nn.Module):
    """Latents to vectors: a level, a halving, a level."""

    def __init__(self, config: ModelConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        unet = config.unet
        self.time = TimeMLP(unet.time_dim)
        self.conv_in = _conv(latent_channels, unet.channels[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(channels, channels, unet.time_dim) for _ in range(unet.blocks)
            )
            for channels in unet.channels
        )
        self.halvings = nn.ModuleList(
            nn.Conv2d(4 * wide, narrow, 1) for wide, narrow in pairwise(unet.channels)
        )
        self.norm = _norm(unet.channels[-1])
        self.project = nn.Linear(unet.channels[-1], config.dim)

    def forward(
        self, noisy: Float[Tensor, "m c h w"], timesteps: Int[Tensor, " m"]
    ) -> EncodedImages:
        """Patch vectors, and the map after every block as a skip."""
        dtype = self.conv_in.weight.dtype
        time = F.silu(self.time(timesteps)).to(dtype)
        x = self.conv_in(noisy.to(dtype, memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for index, level in enumerate(self.levels):
            if index:
                x = rearrange(x, "m c (y ky) (x kx) -> m (c ky kx) y x", ky=2, kx=2)
                x = self.halvings[index - 1](x.contiguous(memory_format=torch.channels_last))
            assert isinstance(level, nn.ModuleList)
            for block in level:
                x = block(x, time)
                skips.append(x)
        # A copy: sharding hooks its backward onto what leaves, which must be no view.
        vectors = self.project(rearrange(self.norm(x), "m c y x -> m (y x) c")).clone()
        return EncodedImages(patches=vectors, skips=tuple(skips), grid=(x.shape[2], x.shape[3]))


class UNetUp(nn.Module):
    """Vectors to noise: the way down in reverse, with its maps at hand."""

    def __init__(self, config: ModelConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        unet = config.unet
        channels = unet.channels[::-1]
        self.time = TimeMLP(unet.time_dim)
        self.project_in = nn.Linear(config.dim, channels[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(2 * width, width, unet.time_dim) for _ in range(unet.blocks)
            )
            for width in channels
        )
        self.doublings = nn.ModuleList(
            nn.Conv2d(narrow, 4 * wide, 1) for narrow, wide in pairwise(channels)
        )
        self.norm = _norm(channels[-1])
        self.conv_out = _conv(channels[-1], out_channels)

    def forward(
        self,
        hidden: Float[Tensor, "m p d"],
        timesteps: Int[Tensor, " m"],
        encoded: EncodedImages,
    ) -> Float[Tensor, "m c h w"]:
        """The predicted noise, in fp32."""
        time = F.silu(self.time(timesteps)).to(self.project_in.weight.dtype)
        skips = list(encoded.skips)
        if self.config.unet.without_transformer:
            # Times 0, so that every weight has a gradient and shards as it does without the control.
            hidden = hidden * 0
        x = rearrange(self.project_in(hidden), "m (y x) c -> m c y x", y=encoded.grid[0])
        x = x.contiguous(memory_format=torch.channels_last)
        for index, level in enumerate(self.levels):
            if index:
                x = self.doublings[index - 1](x)
                x = rearrange(x, "m (c ky kx) y x -> m c (y ky) (x kx)", ky=2, kx=2)
            assert isinstance(level, nn.ModuleList)
            for block in level:
                x = block(torch.cat([x, skips.pop()], dim=1), time)
        return self.conv_out(F.silu(self.norm(x))).to(torch.float32)
