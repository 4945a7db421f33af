"""The table of adapters: how latents enter the transformer and how noise leaves it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from transfusion.model.config import AdapterName, ModelConfig
from transfusion.model.linear import LinearDown, LinearUp
from transfusion.model.unet import UNetDown, UNetUp

Way = Callable[[ModelConfig, int], nn.Module]
"""(config, channels of what comes in or goes out) -> a module."""

DOWN: Mapping[AdapterName, Way] = MappingProxyType({"linear": LinearDown, "unet": UNetDown})
"""Called with (noisy m c h w, timesteps m); gives `EncodedImages`."""

UP: Mapping[AdapterName, Way] = MappingProxyType({"linear": LinearUp, "unet": UNetUp})
"""Called with (hidden m p d, timesteps m, encoded); gives the prediction m c h w in fp32."""
