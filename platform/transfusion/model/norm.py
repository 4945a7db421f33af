"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), in fewer passes over memory where a CPU only infers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's, which a CPU takes apart into six passes; fewer where no derivative is asked for."""

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Every row by its root mean square, times the weight."""
        # Half precision needs the mean in fp32, which torch sees to.
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # Numbers that torch would make tensors of cost a step of one token more than the arithmetic.
        eps = norm.new_full((1,), self.eps or 0.0)
        scale = torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight)
