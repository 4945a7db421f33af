"""Both losses in one place: next tokens on text, the target of images, and how they add up.

Everything is a sum and a count, never a mean: means of micro-batches or of ranks would re-weight
documents by padding and accumulation. Only the global batch is divided by.
Axes: r = text rows, m = image slots, c h w = latent, v = vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from transfusion.diffusion.noising import Noised
from transfusion.model.transformer import ModelOutput
from transfusion.sequence.batch import PackedBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSums:
    """Sums over a micro-batch, in fp32. They add up over micro-batches and ranks."""

    lm_sum: Float[Tensor, ""]
    """Cross-entropies of the text targets, in nats."""

    lm_count: Float[Tensor, ""]

    diffusion_sum: Float[Tensor, ""]
    """Weighted mean squared error of each image, summed over images."""

    image_count: Float[Tensor, ""]

    z_sum: Float[Tensor, ""] | None = None
    """The z-loss of the text targets with its weight; None where it has none."""

    bound_sum: Float[Tensor, ""] | None = None
    """Bits an element of the variational bound, summed over images, where variances are learned."""

    code_sum: Float[Tensor, ""] | None = None
    """What of `lm_sum` is of targets that are codes of images, where images are tokens; with `code_count`."""

    code_count: Float[Tensor, ""] | None = None

    image_errors: Float[Tensor, " m"]
    """What each slot adds to `diffusion_sum`."""


def loss_sums(
    output: ModelOutput,
    batch: PackedBatch,
    noised: Noised | None = None,
    *,
    z_loss_weight: float = 0.0,
    first_code: int | None = None,
) -> LossSums:
    """The losses of one micro-batch as sums and counts.

    Args:
        noised: What the model was to predict of the images, and how much each counts: their noise, all alike, when
            it is left out. Weights move the sum, never the count.
        z_loss_weight: Of the squared logarithm of the softmax's denominator (Chameleon, arXiv:2405.09818, 2.3.2).
        first_code: From this id on targets are codes of images; there are none when it is left out.
    """
    each = output.text_losses
    if each is None:
        each = text_losses(output.logits, batch.text_targets, with_z=z_loss_weight > 0)
    cross_entropy, *squares = each
    cross_entropy = cross_entropy * batch.text_weight
    z_sum = z_loss_weight * (squares[0] * batch.text_weight).sum() if squares else None
    code_sum, code_count = None, None
    if first_code is not None:
        is_code = batch.text_targets >= first_code
        code_sum, code_count = (cross_entropy * is_code).sum(), (batch.text_weight * is_code).sum()
    error = image_errors(output.epsilon, batch.noise if noised is None else noised.target)
    if noised is not None and noised.weight is not None:
        error = error * noised.weight
    error = error * batch.image_weight
    bound_sum = None
    if noised is not None and noised.variance is not None and output.variance is not None:
        missed = output.epsilon - noised.target
        bound = noised.variance.bound(output.variance, missed, batch.timesteps)
        bound_sum = (bound * batch.image_weight).sum()
    return LossSums(
        lm_sum=cross_entropy.sum(),
        lm_count=batch.text_weight.sum(),
        diffusion_sum=error.sum(),
        image_count=batch.image_weight.sum(),
        z_sum=z_sum,
        bound_sum=bound_sum,
        code_sum=code_sum,
        code_count=code_count,
        image_errors=error,
    )


def text_losses(
    logits: Float[Tensor, "r v"], targets: Int[Tensor, " r"], *, with_z: bool
) -> Float[Tensor, "k r"]:
    """Cross-entropy of each row in fp32, and below it with `with_z` the square of its denominator's logarithm."""
    logits = logits.float()
    losses = [F.cross_entropy(logits, targets.long(), reduction="none")]
    if with_z:
        losses.append(logits.logsumexp(dim=-1).square())
    return torch.stack(losses)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedTextLosses:
    """`text_losses` of rows of which only some have logits at once; see `TransfusionModel.forward`.

    The logits of a chunk are dropped after its forward and computed again for its backward: one product more with
    the head, for memory that does not grow with the rows. In bf16 the head's gradient adds up over chunks in bf16.
    """

    targets: Int[Tensor, " r"]
    chunk_rows: int
    with_z: bool = False

    def __call__(
        self, hidden: Float[Tensor, "r d"], logits: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "k r"]:
        """Of rows of the stream, and of what makes logits of them."""

        def losses(rows: Tensor, targets: Tensor) -> Tensor:
            return text_losses(logits(rows), targets, with_z=self.with_z)

        chunks = zip(
            hidden.split(self.chunk_rows), self.targets.split(self.chunk_rows), strict=True
        )
        return torch.cat(
            [
                checkpoint(losses, rows, targets, use_reentrant=False, preserve_rng_state=False)
                for rows, targets in chunks
            ],
            dim=1,
        )


def image_errors(
    prediction: Float[Tensor, "m c h w"], target: Float[Tensor, "m c h w"]
) -> Float[Tensor, " m"]:
    """Mean squared error of each image over the elements of its latent, in fp32."""
    return reduce((prediction.float() - target.float()).square(), "m c h w -> m", "mean")


def combine(
    sums: LossSums,
    *,
    global_lm_count: Float[Tensor, ""] | float | int,
    global_image_count: Float[Tensor, ""] | float | int,
    diffusion_weight: float = 5.0,
    lm_weight: float = 1.0,
    bound_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """This micro-batch's share of the loss of the global batch: the shares add up to the whole.

    Args:
        global_lm_count: Text targets in the whole global batch, over all ranks and micro-batches.
        global_image_count: Images in the whole global batch.
        bound_weight: Of the variational bound within the diffusion loss.
    """
    diffusion_sum = sums.diffusion_sum
    if sums.bound_sum is not None:
        diffusion_sum = diffusion_sum + bound_weight * sums.bound_sum
    share = lm_weight * (sums.lm_sum / _at_least_one(global_lm_count)) + diffusion_weight * (
        diffusion_sum / _at_least_one(global_image_count)
    )
    if sums.z_sum is not None:
        share = share + sums.z_sum / _at_least_one(global_lm_count)
    return share


def _at_least_one(count: Tensor | float | int) -> Tensor | float | int:
    # A batch without images (or without text) has a sum of 0: it is divided by 1.
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
