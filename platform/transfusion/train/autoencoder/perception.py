"""The perceptual loss: how far images are apart in the features of a network that knows images.

Zhang et al. 2018, arXiv:1801.03924 (LPIPS): features of VGG-16 after the last convolution of each of its five
parts, each position at unit length, squared differences, averaged over positions. Weights come from a file;
nothing is fetched.
Axes: b = images, h w = pixels, c i j = features.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from transfusion.errors import ArtifactError

VGG_PARTS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Places of the convolutions in torchvision's `vgg16().features`, part by part; a pooling stands between parts."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], as torchvision's weights expect them."""


class Perception:
    """Frozen features. No module: it is neither trained nor sharded nor saved.

    Args:
        path: A safetensors file with `features.<place>.weight` and `.bias` as torchvision names those of VGG-16,
            of any widths. `lin<part>.weight`, one number a channel, are LPIPS's learned weights; without them
            every channel counts alike.

    Raises:
        ArtifactError: The file is missing or holds something else.
    """

    def __init__(self, path: Path, *, device: torch.device) -> None:
        if not path.is_file():
            raise ArtifactError(
                f"{path}: there is no such file; the perceptual loss needs the weights of VGG-16 there "
                "(safetensors, torchvision's names), or leave perceptual out"
            )
        from safetensors.torch import load_file

        try:
            tensors = load_file(path, device=str(device))
        except Exception as error:
            raise ArtifactError(f"{path}: is no safetensors file: {error}") from error
        wanted = [
            f"features.{place}.{kind}"
            for part in VGG_PARTS
            for place in part
            for kind in ("weight", "bias")
        ]
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise ArtifactError(
                f"{path}: lacks {len(missing)} tensors of VGG-16, such as {missing[0]}; save "
                "torchvision's vgg16().state_dict() as safetensors"
            )
        self._tensors = {name: tensor.float() for name, tensor in tensors.items()}
        self._mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(_STD, device=device).view(1, 3, 1, 1)

    def distance(
        self, made: Float[Tensor, "b 3 h w"], signal: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Of each image from its original; both in [-1, 1]. Gradients flow to `made`."""
        with torch.no_grad():
            originals = self._features(signal)
        total = torch.zeros(len(made), device=made.device)
        for part, (found, original) in enumerate(zip(self._features(made), originals, strict=True)):
            apart = (F.normalize(found, dim=1) - F.normalize(original, dim=1)).square()
            learned = self._tensors.get(f"lin{part}.weight")
            if learned is not None:
                apart = apart * learned.view(1, -1, 1, 1)
            total = total + apart.sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, signal: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        state = ((signal + 1) / 2 - self._mean) / self._std
        found = []
        for number, part in enumerate(VGG_PARTS):
            # Images of fewer than 16 px have no pixel left for the last parts.
            if number and min(state.shape[2:]) > 1:
                state = F.max_pool2d(state, 2)
            for place in part:
                weight = self._tensors[f"features.{place}.weight"]
                bias = self._tensors[f"features.{place}.bias"]
                state = F.relu(F.conv2d(state, weight, bias, padding=1))
            found.append(state)
        return found
