"""FLOPs of a model by formula: products of matrices, and attention over the keys that are really seen.

Norms, activations and the rotation are not counted, as is the custom; they are a few in a hundred of the time.
Nothing here needs torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transfusion.diffusion.config import VarianceName
from transfusion.model.config import ModelConfig
from transfusion.model.parts import list_parts
from transfusion.sequence.layout import ImageAttention, SequenceLayout

if TYPE_CHECKING:
    from transfusion.sequence.batch import PackedBatch

BACKWARD = 2
"""Products on the way back for each on the way there: one for the input's gradient, one for the weight's."""

LATENT_SHAPE = (8, 32, 32)
"""The paper's images: 256 px through an autoencoder that halves three times."""

CAPTION_TOKENS = 28
"""Of the usual sequence: no paper states how long its captions are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is computed: of a batch, or the mean over many sequences."""

    positions: int | float
    text_rows: int | float
    """Positions that go through the head."""
    images: int | float
    key_pairs: int | float
    """Sum over queries of the keys that each sees: the real density of the mask."""

    @classmethod
    def of(cls, batch: "PackedBatch") -> "Work":
        """Of a packed batch, without its unused image slots and text rows; padding is computed like the rest."""
        seen = (batch.hi - batch.lo).sum()
        if batch.lo2 is not None and batch.hi2 is not None:
            seen = seen + (batch.hi2 - batch.lo2).sum()
        return cls(
            positions=batch.token_ids.numel(),
            text_rows=float(batch.text_weight.sum()),
            images=float(batch.present.sum()),
            key_pairs=int(seen),
        )

    @classmethod
    def usual(
        cls,
        num_patches: int,
        *,
        sequence_length: int = 4096,
        image_attention: ImageAttention = "bidirectional",
        caption_tokens: int = CAPTION_TOKENS,
    ) -> "Work":
        """Of the paper's sequence in the mean: one half a document of text, one half captions and their images."""
        half = sequence_length / 2
        # BOS, the caption, BOI, patches, EOI, EOS: BOS and caption have a target, and so has EOI.
        pair = caption_tokens + SequenceLayout().image_length(num_patches) + 2
        images = half / pair
        seen = pair * (pair + 1) / 2
        if image_attention == "bidirectional":
            seen += num_patches * (num_patches - 1) / 2
        return cls(
            positions=sequence_length,
            text_rows=half - 1 + images * (caption_tokens + 2),
            images=images,
            key_pairs=half * (half + 1) / 2 + images * seen,
        )


def forward_flops(
    config: ModelConfig,
    work: Work,
    *,
    vocab_size: int,
    latent_shape: tuple[int, int, int],
    variance: VarianceName = "fixed",
) -> Mapping[str, float]:
    """FLOPs of one way through, by part; their sum is the whole. `keys` are the products of queries, keys, values.

    Args:
        latent_shape: Channels, height and width of the images' latents.
    """
    counts = {"position": work.positions, "text_row": work.text_rows, "image": work.images}
    flops: dict[str, float] = {}
    parts = list_parts(config, vocab_size=vocab_size, latent_shape=latent_shape, variance=variance)
    for part in parts:
        done = 2.0 * part.products * part.uses * counts[part.per]
        flops[part.name] = flops.get(part.name, 0.0) + done
    # Scores and sums, 2 FLOPs each, over all heads: heads of keys and values are shared, their products are not.
    flops["keys"] = 4.0 * config.depth * config.dim * work.key_pairs
    return flops


def training_flops(
    config: ModelConfig,
    work: Work,
    *,
    vocab_size: int,
    latent_shape: tuple[int, int, int],
    variance: VarianceName = "fixed",
) -> float:
    """FLOPs of a step over `work`, there and back; what is computed anew to save memory does not count."""
    once = forward_flops(
        config, work, vocab_size=vocab_size, latent_shape=latent_shape, variance=variance
    )
    return (1 + BACKWARD) * sum(once.values())


def usual_patches(patch_size: int) -> int:
    """Of an image of `LATENT_SHAPE`."""
    _, height, width = LATENT_SHAPE
    return (height // patch_size) * (width // patch_size)


def usual_flops_per_position(
    config: ModelConfig,
    *,
    vocab_size: int,
    sequence_length: int = 4096,
    image_attention: ImageAttention = "bidirectional",
    has_latents: bool = True,
) -> float:
    """Of training, a position of the paper's sequence in the mean: `Work.usual`, images of `LATENT_SHAPE`.

    Args:
        has_latents: False where all is tokens, codes of images among them: every position has a target.
    """
    work = Work.usual(
        usual_patches(config.patch_size),
        sequence_length=sequence_length,
        image_attention=image_attention if has_latents else "causal",
    )
    if not has_latents:
        work = replace(work, text_rows=sequence_length, images=0)
    flops = training_flops(config, work, vocab_size=vocab_size, latent_shape=LATENT_SHAPE)
    return flops / work.positions
