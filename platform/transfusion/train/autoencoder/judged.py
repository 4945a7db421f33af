"""An autoencoder with what judges its reconstructions beside pixels: features, a discriminator, or both.

Everything is in one forward, where sharded weights are whole.
Axes: b = images, h w = pixels.
"""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from transfusion.train.autoencoder.config import TrainAutoencoderConfig
from transfusion.train.autoencoder.critic import Critic, balance, contest, no_contest
from transfusion.train.autoencoder.forward import QuantizedReconstruction, Reconstruction
from transfusion.train.autoencoder.perception import Perception


class Judgement(NamedTuple):
    """Means over images and patches."""

    perceptual: Float[Tensor, ""]
    generator: Float[Tensor, ""]
    """Balanced, and so of the size of the other losses."""
    critic: Float[Tensor, ""]
    strength: Float[Tensor, ""]
    """What `generator` was balanced by."""


class Judged(nn.Module):
    """Runs the autoencoder, then its judges."""

    def __init__(
        self,
        inner: Reconstruction | QuantizedReconstruction,
        config: TrainAutoencoderConfig,
        perception: Perception | None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.critic = Critic(config.discriminator) if config.discriminator else None
        self._perception = perception
        self._perceptual_weight = config.perceptual.weight if config.perceptual else 0.0
        self._last = inner.network.decoder.conv_out
        self._entering: Tensor | None = None
        self._last.register_forward_pre_hook(self._note)

    def forward(
        self, signal: Float[Tensor, "b 3 h w"], noise: Tensor, contested: bool = False
    ) -> tuple[Any, ...]:
        """What the autoencoder gives, and a `Judgement` behind it.

        Args:
            contested: Whether the discriminator takes part.
        """
        made, *latent = self.inner(signal, noise)
        zero = signal.new_zeros(())
        perceptual = zero
        if self._perception is not None:
            perceptual = self._perception.distance(made, signal).mean()
        generator, critic, strength = zero, zero, zero
        if self.critic is not None and contested:
            between = contest(self.critic, made, signal)
            assert self._entering is not None
            strength = balance(
                (made - signal).abs().mean() + self._perceptual_weight * perceptual,
                between.generator,
                made,
                self._entering,
                self._last,
            )
            generator, critic = strength * between.generator, between.critic
        elif self.critic is not None:
            critic = no_contest(self.critic)
        self._entering = None
        # New tensors: sharding hooks its gathering of weights onto what leaves.
        judged = Judgement(*(one.clone() for one in (perceptual, generator, critic, strength)))
        return (made, *latent, judged)

    def _note(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._entering = given[0]
