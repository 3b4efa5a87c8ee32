"""Copies torch's modules so that they compute in any mode what they compute in eval mode.

A converted graph is for inference: if its parent calls train(), dropout must stay off and statistics must not move.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


class FrozenNorm(nn.Module):
    """Batch norm or instance norm with the statistics that were recorded in training.

    It computes (x - running_mean) / sqrt(running_var + eps) * weight + bias for each channel. All four are copied from
    the module; they are [C], and the channels are dimension 1 of x.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _NormBase) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(norm, name)
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C, ...]; the result has the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"{len(self.running_mean)}, eps={self.eps}"


def freeze(module: nn.Module) -> nn.Module:
    """Copy one of torch's own modules, for inference only.

    Of the modules that torch.fx leaves whole, norms with recorded statistics, dropout and RReLU compute something else
    in train mode; they are replaced.

    Returns:
        A module that needs no gradient and computes in any mode what the given one computes in eval mode.
    """
    if isinstance(module, _NormBase) and module.running_mean is not None:
        return FrozenNorm(module)
    if isinstance(module, _DropoutNd):
        return nn.Identity()
    if isinstance(module, nn.RReLU):
        return nn.LeakyReLU((module.lower + module.upper) / 2)
    own = copy.deepcopy(module).requires_grad_(False)
    if "inplace" in vars(own):
        vars(own)["inplace"] = False  # tracing has already put the readers of what it wrote in order
    return own
