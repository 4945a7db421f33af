"""The patch discriminator, and training against it.

Esser et al. 2021, arXiv:2012.09841: hinge losses, and a weight that makes both losses pull at the decoder's last
layer with equal force (equation 7). Group norms stand in place of batch norms: a score depends on its image
alone, so that lanes and workers do not show.

Both losses come of one forward and one backward: in the generator's the discriminator's weights are constants,
in the discriminator's the reconstruction is. So one optimizer takes both steps, and a checkpoint holds both.
Axes: b = images, h w = pixels, i j = patches.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.grad import conv2d_weight

from transfusion.train.autoencoder.config import DiscriminatorConfig

MAX_WEIGHT = 1e4
_SMALL = 1e-4
"""Both as in the paper's code (CompVis/taming-transformers, `vqperceptual.py`)."""


class Critic(nn.Module):
    """Scores of overlapping patches: Isola et al. 2017, arXiv:1611.07004, the 70 x 70 one with three layers."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number in range(1, config.layers + 1):
            wider = config.channels * min(2**number, 8)
            stride = 2 if number < config.layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 i j"]:
        """High where a patch looks real."""
        scores: Tensor = self.layers(images)
        return scores


class Contest(NamedTuple):
    """What the two have against each other; means over patches."""

    generator: Float[Tensor, ""]
    """Moves the autoencoder alone."""
    critic: Float[Tensor, ""]
    """Moves the discriminator alone."""


def contest(
    critic: Critic, made: Float[Tensor, "b 3 h w"], signal: Float[Tensor, "b 3 h w"]
) -> Contest:
    """Hinge losses of both."""
    constants = {name: weight.detach() for name, weight in critic.named_parameters()}
    generator = -functional_call(critic, constants, (made,)).mean()
    real, fake = critic(signal), critic(made.detach())
    return Contest(generator, 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()))


def no_contest(critic: Critic) -> Float[Tensor, ""]:
    """0, with a gradient of 0 for every weight: the optimizer's state is then whole from the first step on."""
    return torch.stack([weight.sum() for weight in critic.parameters()]).sum() * 0.0


def balance(
    reconstruction: Float[Tensor, ""],
    generator: Float[Tensor, ""],
    made: Float[Tensor, "b 3 h w"],
    entering: Float[Tensor, "b c h w"],
    last: nn.Conv2d,
) -> Float[Tensor, ""]:
    """How much stronger the reconstruction pulls at the decoder's last convolution than the generator's loss does.

    Args:
        reconstruction: In the units of `generator`.
        entering: What the last convolution was given.
    """
    strengths = []
    for loss in (reconstruction, generator):
        (at_output,) = torch.autograd.grad(loss, made, retain_graph=True)
        at_weight = conv2d_weight(
            entering.detach().float(), last.weight.shape, at_output, padding=1
        )
        strengths.append(at_weight.norm())
    return (strengths[0] / (strengths[1] + _SMALL)).clamp(max=MAX_WEIGHT).detach()
