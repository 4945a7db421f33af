"""The linear adapter: one matrix from a patch to a vector, one back.

Axes: m = images, c h w = latent, p = patches, k = patch side, d = width of the transformer.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.model.config import ModelConfig
from transfusion.model.images import EncodedImages
from transfusion.model.time import TimeMLP


class LinearDown(nn.Module):
    """Patches to vectors, with the timestep added before the matrix or after it."""

    def __init__(self, config: ModelConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        patch_dim = latent_channels * config.patch_size**2
        self.project = nn.Linear(patch_dim, config.dim)
        # As wide as what it is added to, or stands beside.
        self.time = TimeMLP(patch_dim if config.time_embedding == "patch" else config.dim)

    def forward(
        self, noisy: Float[Tensor, "m c h w"], timesteps: Int[Tensor, " m"]
    ) -> EncodedImages:
        """Zhou et al. 2024, arXiv:2408.11039, footnote 6; the MLP after the matrix trains better.

        As a token: Zhao et al. 2024, arXiv:2409.16280 (`add_before_image_tokens` of its code).
        """
        dtype = self.project.weight.dtype
        size = self.config.patch_size
        grid = (noisy.shape[2] // size, noisy.shape[3] // size)
        patches = rearrange(
            noisy, "m c (y ky) (x kx) -> m (y x) (c ky kx)", ky=size, kx=size
        ).float()
        time = rearrange(self.time(timesteps), "m d -> m 1 d")
        if self.config.time_embedding == "patch":
            vectors = self.project((patches + time).to(dtype))
        elif self.config.time_embedding == "token":
            vectors = torch.cat([time.to(dtype), self.project(patches.to(dtype))], dim=1)
        else:
            vectors = self.project(patches.to(dtype)) + time.to(dtype)
        return EncodedImages(patches=vectors, skips=(), grid=grid)


class LinearUp(nn.Module):
    """Vectors to the noise of their patches."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.dim, channels * config.patch_size**2)
        modulated = config.image_head == "adaln"
        self.time = TimeMLP(config.dim) if modulated else None
        self.modulation = nn.Linear(config.dim, 2 * config.dim) if modulated else None

    def forward(
        self,
        hidden: Float[Tensor, "m p d"],
        timesteps: Int[Tensor, " m"],
        encoded: EncodedImages,
    ) -> Float[Tensor, "m c h w"]:
        """The predicted noise, in fp32."""
        size = self.config.patch_size
        if self.config.time_token:
            hidden = hidden[:, 1:]
        if self.time is not None and self.modulation is not None:
            # Peebles and Xie 2023, arXiv:2212.09748: DiT's last layer.
            time = F.silu(self.time(timesteps)).to(hidden.dtype)
            shift, scale = rearrange(self.modulation(time), "m (two d) -> two m 1 d", two=2)
            hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return rearrange(
            self.project(hidden).to(torch.float32),
            "m (y x) (c ky kx) -> m c (y ky) (x kx)",
            y=encoded.grid[0],
            ky=size,
            kx=size,
        )
