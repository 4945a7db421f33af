"""The Transfusion model: next tokens at text, noise at images, one transformer over both.

Axes: b = sequences, n = positions, d = width, v = vocabulary, r = text rows, m = images, p = patches,
c h w = latent.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.diffusion.config import VarianceName
from transfusion.model.adapters import DOWN, UP
from transfusion.model.attention import Attend, plan_attention
from transfusion.model.blocks import Block, rotation
from transfusion.model.cache import RaggedStep
from transfusion.model.config import ModelConfig
from transfusion.model.head import Head
from transfusion.model.images import EncodedImages
from transfusion.model.initial import initial_weight, initialize
from transfusion.model.modalities import Rows, each_by_its_own
from transfusion.model.norm import RMSNorm
from transfusion.model.positions import sinusoid_2d
from transfusion.model.skip import NoisySkip
from transfusion.sequence.batch import PackedBatch

TextLosses = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""(stream at the text rows: r d, its logits) -> k r."""


class ModelOutput(NamedTuple):
    """What the model predicts of a batch."""

    logits: Float[Tensor, "r v"]
    """Of the next token, at the batch's text rows only."""

    epsilon: Float[Tensor, "m c h w"]
    """What is predicted of each image slot, in fp32: its noise, or what else the objective's target is."""

    text_losses: Float[Tensor, "k r"] | None = None
    """Where they were asked for: then there are no logits."""

    variance: Float[Tensor, "m c h w"] | None = None
    """Where it is learned: how far up its range each element of a step lies, -1 to 1 (`diffusion.variance`)."""


class TransfusionModel(nn.Module):
    """Embeddings, adapter, blocks, head. `forward` trains; the other methods are the pieces of sampling.

    Parallelism, compilation and checkpointing are applied from outside: to each of `blocks`, then to the whole.
    """

    lr_scales: Mapping[str, float] = MappingProxyType({})
    """Learning rates by parameter name, against the run's; 1 for those that are not named."""

    decay_scales: Mapping[str, float] = MappingProxyType({})
    """The same of the weight decay, which an update multiplies by the rate."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: int,
        latent_channels: int,
        variance: VarianceName = "fixed",
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.latent_channels = latent_channels
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.down = DOWN[config.adapter](config, latent_channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        own = config.weights == "by_modality"
        self.image_norm = RMSNorm(config.dim, eps=config.norm_eps) if own else None
        predicted = latent_channels * (1 if variance == "fixed" else 2)
        self.up = UP[config.adapter](config, predicted)
        self.skip = NoisySkip(latent_channels) if config.noisy_skip == "gated" else None
        self.head = Head(config.dim, vocab_size)

    def init_weights(self, seed: int) -> None:
        """Draws every weight anew; the same on every device, and after `to_empty`."""
        initialize(self, partial(initial_weight, depth=self.config.depth, seed=seed))

    def forward(
        self,
        batch: PackedBatch,
        noisy: Float[Tensor, "m c h w"],
        text_losses: TextLosses | None = None,
    ) -> ModelOutput:
        """Predictions for a packed batch.

        Args:
            noisy: The batch's latents with its noise added at its timesteps.
            text_losses: Makes losses of the stream at the text rows, so that their logits need not exist at once.
        """
        num_sequences = batch.token_ids.shape[0]
        encoded = self.encode_images(noisy, batch.timesteps)
        tokens = rearrange(self.embed_tokens(batch.token_ids), "b n d -> (b n) d")
        places = rearrange(batch.image_positions, "m p -> (m p)")
        # One row past the end takes the patches of unused slots: shapes stay static.
        dummy = tokens.new_zeros(1, tokens.shape[1])
        hidden = torch.cat([tokens, dummy]).index_copy(
            0, places, rearrange(encoded.patches, "m p d -> (m p) d").to(tokens.dtype)
        )
        hidden = self.transform(
            rearrange(hidden[:-1], "(b n) d -> b n d", b=num_sequences),
            position_ids=batch.position_ids,
            attention=plan_attention(
                batch.lo,
                batch.hi,
                query_block=self.config.query_block,
                lo2=batch.lo2,
                hi2=batch.hi2,
            ),
            images=places,
        )
        rows = torch.cat([rearrange(hidden, "b n d -> (b n) d"), dummy])
        patches = rearrange(
            rows.index_select(0, places), "(m p) d -> m p d", p=batch.image_positions.shape[1]
        )
        text = rows.index_select(0, batch.text_rows)
        epsilon, variance = self.decode_images(patches, batch.timesteps, encoded), None
        if epsilon.shape[1] > self.latent_channels:
            # Copies: FSDP hooks its backward onto what a forward returns, which must be no views.
            epsilon, variance = (part.clone() for part in epsilon.chunk(2, dim=1))
        return ModelOutput(
            logits=self.logits(text) if text_losses is None else text.new_zeros(0, self.vocab_size),
            epsilon=epsilon,
            text_losses=None if text_losses is None else text_losses(text, self.logits),
            variance=variance,
        )

    def embed_tokens(self, token_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Vectors of token ids."""
        return self.embedding(token_ids)

    def encode_images(
        self, noisy: Float[Tensor, "m c h w"], timesteps: Int[Tensor, " m"]
    ) -> EncodedImages:
        """Vectors of the patches of noisy latents. Once a denoising step, for all branches of guidance."""
        encoded = self.down(noisy, timesteps)
        patches, skips = encoded.patches, encoded.skips
        if self.config.patch_positions == "sinusoidal_2d":
            where = sinusoid_2d(
                encoded.grid,
                patches.shape[2],
                device=patches.device,
                learned_side=self.config.position_grid,
            )
            # A time token before the patches stands nowhere.
            where = F.pad(where, (0, 0, patches.shape[1] - where.shape[0], 0))
            patches = patches + where.to(patches.dtype)
        if self.skip is not None:
            skips = (noisy, *skips)
        return EncodedImages(patches=patches, skips=skips, grid=encoded.grid)

    def transform(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        position_ids: Int[Tensor, "b n"],
        attention: Attend | RaggedStep,
        images: Int[Tensor, " i"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The blocks and the last norm.

        Args:
            attention: What `plan_attention` gives, for whole sequences; a `RaggedStep` to read and write a cache.
            images: Index into the flattened (b n) of the positions that are images', b * n for none: they have
                weights of their own where the config says so. All positions are text without it.
        """
        rows = None
        if self.image_norm is not None and images is not None:
            num_rows = hidden.shape[0] * hidden.shape[1]
            rows = Rows.of(images, num_rows=num_rows, static=hidden.is_cuda)
        by = rotation(
            position_ids,
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            dtype=hidden.dtype,
        )
        for index, block in enumerate(self.blocks):
            attend = attention.layer(index) if isinstance(attention, RaggedStep) else attention
            hidden = block(hidden, by=by, attend=attend, rows=rows)
        return each_by_its_own(self.norm, self.image_norm, hidden, rows)

    def decode_images(
        self,
        hidden: Float[Tensor, "m p d"],
        timesteps: Int[Tensor, " m"],
        encoded: EncodedImages,
    ) -> Float[Tensor, "m c2 h w"]:
        """Predicted noise, in fp32, of patches that have been through the transformer.

        Args:
            encoded: Of the same step; where branches of guidance are stacked, its rows are repeated by `of`.

        Returns:
            The latent's channels, and behind them as many of the variance where it is learned.
        """
        if self.skip is None:
            return self.up(hidden, timesteps, encoded)
        noisy, *skips = encoded.skips
        output = self.up(hidden, timesteps, encoded._replace(skips=tuple(skips)))
        # What is said of the variance is no noise, which the noisy latent is nearly.
        epsilon, *variance = output.split(self.latent_channels, dim=1)
        epsilon = self.skip(epsilon, noisy, timesteps)
        return torch.cat([epsilon, *variance], dim=1) if variance else epsilon

    def logits(self, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r v"]:
        """Scores of the next token."""
        return self.head(hidden)
