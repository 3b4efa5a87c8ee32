"""Modules that train, in the one form that a converted graph needs: what they compute in eval mode, whatever train()
says. A graph is for inference, and a parent's train() must not move its statistics.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


class InferenceNorm(nn.Module):
    """Batch norm, or instance norm, by statistics that were recorded in training: y = (x - mean) / sqrt(var + eps) *
    weight + bias, per channel [C] in dim 1."""

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
        """[N, C, ...] -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, eps={self.eps}"


def inference_form(module: nn.Module) -> nn.Module:
    """A copy of torch's own module that needs no gradient and computes, in any mode, what the module does in eval mode.

    Of torch's modules that fx leaves whole, those that compute another thing in train mode are norms with recorded
    statistics, dropout and RReLU.
    """
    if isinstance(module, _NormBase) and module.running_mean is not None:
        return InferenceNorm(module)
    if isinstance(module, _DropoutNd):
        return nn.Identity()
    if isinstance(module, nn.RReLU):
        return nn.LeakyReLU((module.lower + module.upper) / 2)
    own = copy.deepcopy(module).requires_grad_(False)
    if "inplace" in vars(own):
        vars(own)["inplace"] = False  # capture has put the readers of what it wrote in order
    return own
