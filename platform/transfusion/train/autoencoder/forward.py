"""What is sharded and run: encoder, bottleneck and decoder as one call, so that sharding sees one forward.

Axes: b = images, h w = pixels, c i j = latent, k = codes.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfusion.autoencoder.network import Posterior, posterior
from transfusion.autoencoder.quantizer import codebook, nearest_codes, vectors_of
from transfusion.train.autoencoder.config import TrainAutoencoderConfig


class Term(NamedTuple):
    """What the latents of some images cost beside their reconstruction."""

    name: str
    sum: Tensor
    """In units of the absolute error summed over pixels."""
    loss: Tensor
    """What is descended. Its value is `weight * sum`; with a codebook its gradient is not."""
    weight: float


class Reconstruction(nn.Module):
    """Encoder, sampled latent, decoder."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, signal: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c i j"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """The reconstruction from a sampled latent; mean and standard deviation of the posterior.

        A plain tuple of new tensors: sharding hooks its gathering of weights onto these.
        """
        found = posterior(self.network, signal)
        made = self.network.decode(found.sample(noise)).sample.float()
        return made.clone(), found.mean.clone(), found.std.clone()

    def term(
        self,
        config: TrainAutoencoderConfig,
        signal: Tensor,  # noqa: ARG002 the other's interface
        mean: Tensor,
        std: Tensor,
    ) -> Term:
        """The KL divergence."""
        kl = kl_divergence(Posterior(mean=mean, std=std)).sum()
        return Term("kl", kl, config.kl_weight * kl, config.kl_weight)


class QuantizedReconstruction(nn.Module):
    """Encoder, nearest codes, decoder; past the codes the decoder's gradient goes straight to the encoder."""

    usage: Float[Tensor, " k"]

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.quantizes = True
        """Whether the decoder hears the codes or, early in training, what the encoder made."""
        # In the checkpoint, so that a resumed run finds the same codes dead.
        self.register_buffer("usage", torch.zeros(len(codebook(network)), dtype=torch.float64))

    def forward(
        self,
        signal: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b c i j"],  # noqa: ARG002 nothing is drawn
    ) -> tuple[
        Float[Tensor, "b 3 h w"],
        Float[Tensor, "b c i j"],
        Float[Tensor, "b c i j"],
        Int[Tensor, "b i j"],
    ]:
        """The reconstruction; what the encoder made, the vectors of its codes, and their numbers."""
        latents = self.network.encode(signal).latents
        table = codebook(self.network)
        indices = nearest_codes(latents, table)
        vectors = vectors_of(indices, table)
        passed = latents + (vectors - latents).detach() if self.quantizes else latents
        made = self.network.decode(passed, force_not_quantize=True).sample.float()
        return made.clone(), latents.float().clone(), vectors.float().clone(), indices

    def term(
        self,
        config: TrainAutoencoderConfig,
        signal: Tensor,
        latents: Tensor,
        vectors: Tensor,
        indices: Tensor,  # noqa: ARG002 for the caller
    ) -> Term:
        """The codes move to what is encoded, and the encoder stays near its codes.

        van den Oord et al. 2017, arXiv:1711.00937, equation 3, with means over the elements of the latent as in
        Esser et al. 2021, arXiv:2012.09841.
        """
        pixels = signal.numel() / latents.numel()
        codes = (vectors - latents.detach()).square().sum() * pixels
        encoder = (latents - vectors.detach()).square().sum() * pixels
        # Both are the same number, with other gradients.
        commitment = config.commitment if self.quantizes else 0.0
        loss = config.codebook_weight * (codes + commitment * encoder)
        return Term("code_distance", codes, loss, config.codebook_weight * (1 + commitment))


def kl_divergence(found: Posterior) -> Float[Tensor, " b"]:
    """KL of each posterior from the unit normal, summed over the latent."""
    variance = found.std.square()
    terms = found.mean.square() + variance - 1.0 - variance.log()
    return 0.5 * terms.flatten(1).sum(dim=1)
