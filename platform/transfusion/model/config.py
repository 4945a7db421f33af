"""What a model is. Vocabulary and latent channels come from the tokenizer and the autoencoder, not from here."""

from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Config

AdapterName = Literal["linear", "unet"]
TimeEmbedding = Literal["patch", "mlp", "token"]
ImageHead = Literal["linear", "adaln"]
PatchPositions = Literal["raster", "sinusoidal_2d"]
NoisySkipName = Literal["none", "gated"]
HeadNorm = Literal["none", "rms"]
NormPlace = Literal["pre", "post"]
WeightSharing = Literal["shared", "by_modality"]


class UNetConfig(Config):
    """The convolutional adapter: one level at the latent's size, one more for each halving."""

    channels: tuple[int, ...] = (64, 128)
    """Channels of each level; 1 + log2(patch_size) of them."""

    blocks: int = Field(default=1, ge=1)
    """Residual blocks of a level on the way down; as many on the way up."""

    time_dim: int = Field(default=128, ge=2, multiple_of=2)
    """Width of the embedding of the timestep."""

    without_transformer: bool = Field(False, exclude_if=lambda value: not value)
    """A control for ablations: the way up is given zeros instead of what the transformer says of the patches, so
    that what is left is the U-Net's own work. Text is learned as ever."""


class ModelConfig(Config):
    """One transformer in the manner of Llama, and how images enter and leave it."""

    dim: int = Field(ge=1)
    """Width of the residual stream."""

    depth: int = Field(ge=1)
    """Number of blocks."""

    num_heads: int = Field(ge=1)
    """Query heads."""

    num_kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; as many as query heads when left out."""

    ffn_dim: int | None = Field(default=None, ge=1)
    """Width of the SwiGLU; Llama's rule when left out."""

    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding."""

    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in every RMSNorm."""

    # Options that came later are left out of a package's config where they are off: it reads as it always did.
    qk_norm: HeadNorm = Field("none", exclude_if=lambda value: value == "none")
    """Whether each head's queries and keys are normalised before their rotation: scores then stay within bounds
    however the modalities compete. Chameleon has it at every size, as a layer norm; here it is the RMS norm of all
    other places, with a gain for each number of a head."""

    norm: NormPlace = Field("pre", exclude_if=lambda value: value == "pre")
    """Whether attention and feed-forward read a normalised copy of the stream (Llama), or what they add to it is
    normalised (Swin, Chameleon's 34B)."""

    weights: WeightSharing = Field("shared", exclude_if=lambda value: value == "shared")
    """Whether patches go through the blocks' weights, or through their own beside them: projections, feed-forward
    and norms by modality, one attention over all (Mixture-of-Transformers, LMFusion)."""

    patch_size: int = Field(default=2, ge=1)
    """Side of a patch in latent pixels; must be that of the plan's layout."""

    adapter: AdapterName = "linear"
    """How patches become vectors and vectors noise."""

    time_embedding: TimeEmbedding = "mlp"
    """How t reaches the linear adapter: added to the patch before it (the paper's), by an MLP after it, or as a
    token before the patches (MonoFormer's), which the plan's layout must count (`time_token`). The U-Net takes t
    in every residual block instead."""

    image_head: ImageHead = Field("linear", exclude_if=lambda value: value == "linear")
    """How the linear adapter gives noise back: by a matrix, or by one behind a norm that t shifts and scales (DiT,
    MonoFormer)."""

    unet: UNetConfig = UNetConfig()
    """The U-Net adapter, where it is chosen."""

    patch_positions: PatchPositions = "raster"
    """What a patch is told of its place: its rank in the sequence alone, or row and column as well."""

    position_grid: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    """Of `sinusoidal_2d`: patches along the longer side of the grid that positions were learned on. Rows and
    columns of any other grid are spread over that range, so that a model goes on at another resolution with places
    it knows. The grid of the images itself when left out. `raster` has ranks alone, and nothing to spread."""

    noisy_skip: NoisySkipName = "none"
    """Whether the noisy latent goes past everything to the output, weighed by gains of t. The paper has none;
    a short run needs it (`model.skip`)."""

    query_block: int = Field(default=32, ge=1)
    """Queries that share one slice of keys on CPU."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> "ModelConfig":
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"dim must be a multiple of twice num_heads {self.num_heads} (an even width of each head), "
                f"got {self.dim}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads {self.num_heads}, got {self.num_kv_heads}"
            )
        if self.position_grid is not None and self.patch_positions != "sinusoidal_2d":
            raise ValueError(
                "position_grid spreads rows and columns, which only patch_positions 'sinusoidal_2d' has, got "
                f"{self.position_grid} with {self.patch_positions!r}; leave it out"
            )
        if self.adapter == "unet" and (self.time_token or self.image_head != "linear"):
            raise ValueError(
                "time_embedding 'token' and image_head 'adaln' are the linear adapter's, and adapter 'unet' has "
                f"ways of its own, got time_embedding {self.time_embedding!r} and image_head {self.image_head!r}"
            )
        if self.adapter == "unet":
            levels = self.patch_size.bit_length()
            if 1 << (levels - 1) != self.patch_size:
                raise ValueError(
                    f"patch_size must be a power of two for the U-Net adapter (one halving each), "
                    f"got {self.patch_size}"
                )
            if len(self.unet.channels) != levels:
                raise ValueError(
                    f"unet.channels must name {levels} levels for patch_size {self.patch_size}, "
                    f"got {len(self.unet.channels)}"
                )
        return self

    @property
    def time_token(self) -> bool:
        """Whether a position before the patches carries the timestep."""
        return self.time_embedding == "token"

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Width of the SwiGLU: 2/3 of 4 dim, rounded up to a multiple of 256, or of 32 for small models."""
        if self.ffn_dim:
            return self.ffn_dim
        multiple = 256 if self.dim >= 512 else 32
        return -(-8 * self.dim // 3 // multiple) * multiple
