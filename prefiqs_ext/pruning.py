"""What is pruned: masks over a network's raw weights, and their packing to one bit per weight.

PreFIQs (arXiv 2605.13396) prunes without structure, by magnitude, 40 % of the weights. A mask depends on the weights
alone: no image, no label, no gradient. It must be taken from the RAW weights: folding batch norm into them first would
rescale |w| and choose other weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

_METHODS = ("magnitude", "random")
_SCOPES = ("layer", "global")


@dataclass(frozen=True)
class Pruning:
    """Which weights the pruned branch loses.

    method: "magnitude" ranks weights by |w|; "random" by a uniform number drawn per weight, from one CPU generator per
        layer seeded by `seed` and the layer's name, so a layer's mask does not depend on which other layers are pruned.
    sparsity: the fraction removed, in [0, 1). Exactly Python's round(sparsity * n) of n weights go, the lowest ranked;
        among equals the lowest flat index of the weight as torch stores its shape (OIHW for a convolution) goes first.
    scope: "layer" ranks each layer by itself; "global" ranks all chosen layers together, equal weights going in the
        order of `model.named_modules()`.
    layers: "conv" (every Conv1d and Conv2d: depthwise, shortcut and stem included), "conv+linear" (those and every
        Linear), or one or more fnmatch patterns over the names of such modules, case-sensitive.
    seed: read by "random" only.

    A module used in several places is one layer.
    Raises ValueError for a value outside these.
    """

    method: Literal["magnitude", "random"] = "magnitude"
    sparsity: float = 0.4
    scope: Literal["layer", "global"] = "layer"
    layers: str | Sequence[str] = "conv"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"pruning method must be one of {', '.join(_METHODS)}, got {self.method!r}")
        if self.scope not in _SCOPES:
            raise ValueError(f"pruning scope must be one of {', '.join(_SCOPES)}, got {self.scope!r}")
        if not isinstance(self.sparsity, (int, float)) or not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be a number in [0, 1), got {self.sparsity!r}")
        if not isinstance(self.seed, int):
            raise ValueError(f"pruning seed must be an integer, got {self.seed!r}")
        if not isinstance(self.layers, str):
            patterns = tuple(self.layers)
            if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
                raise ValueError(f"layers must be 'conv', 'conv+linear' or name patterns, got {self.layers!r}")
            object.__setattr__(self, "layers", patterns)  # a list would make the dataclass unhashable

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Module name -> bool mask of its weight's shape, on the CPU, True = keep, in named_modules order.

        The model is only read. Beside the masks (one byte per weight) this needs, at its peak, 8 bytes per weight of
        the largest layer (scope "layer") or of all chosen layers (scope "global"); 16 for float64 weights.

        Raises ValueError when no layer is chosen, a pattern matches none, or a chosen weight is NaN or infinite.
        """
        weights = self._weights(model)
        groups = [[name] for name in weights] if self.scope == "layer" else [list(weights)]
        masks: dict[str, Tensor] = {}
        for names in groups:
            importances = [self._importance(name, weights[name]) for name in names]
            masks.update(zip(names, _keep(importances, self.sparsity), strict=True))
        return masks

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        convolutions: dict[str, Tensor] = {}
        layers: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                layers[name] = module.weight.detach()
                if not isinstance(module, nn.Linear):
                    convolutions[name] = layers[name]
        if not layers:
            raise ValueError(f"the model has no convolution or linear layer to prune: {type(model).__name__}")
        if self.layers == "conv+linear":
            return layers
        if self.layers == "conv":
            if not convolutions:
                raise ValueError("the model has no convolution to prune, only linear layers: use layers='conv+linear'")
            return convolutions
        patterns = (self.layers,) if isinstance(self.layers, str) else self.layers
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                examples = ", ".join(list(layers)[:3])
                raise ValueError(
                    f"pattern {pattern!r} matches no convolution or linear layer; there are {examples}, ..."
                )
        return {name: w for name, w in layers.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}

    def _importance(self, name: str, weight: Tensor) -> Tensor:
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"the weight of layer {name!r} has NaN or infinite values: check the checkpoint")
        if self.method == "random":
            # The CPU generator keeps 32 bits of its seed: a checksum spreads seed and name over all of them.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
            return torch.rand(weight.shape, generator=generator)
        precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return weight.abs().to("cpu", precise).contiguous()


def _keep(importances: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """True for all but the round(sparsity * n) lowest of the importances ranked together; equals go first to last."""
    ranked = np.concatenate([importance.numpy().ravel() for importance in importances])
    count = round(sparsity * ranked.size)
    if count == 0:
        return [torch.ones_like(importance, dtype=torch.bool) for importance in importances]
    ranked.partition(count - 1)  # linear time, unlike a sort
    threshold = float(ranked[count - 1])
    equals = count - int(np.count_nonzero(ranked[:count] < threshold))
    masks = []
    for importance in importances:
        mask = importance >= threshold
        removed = (importance == threshold).flatten().nonzero().flatten()[:equals]
        mask.view(-1)[removed] = False
        equals -= len(removed)
        masks.append(mask)
    return masks


def pack_mask(mask: Tensor) -> Tensor:
    """One bit per weight, in the order in which the kernels read channels_last weights.

    mask: bool [Co, K] (linear), [Co, C/g, k] or [Co, C/g, kh, kw] (convolution with g groups), True = keep.
    Returns int32 [Co, ceil(K / 32)] on the mask's device, K the weights of one output channel: bit
    k = (r * kw + s) * (C/g) + c, least significant first; the last word is padded with zeros.
    Raises ValueError for another dtype or fewer than two dimensions.
    """
    if mask.dtype != torch.bool or mask.dim() < 2:
        raise ValueError(f"mask must be bool [Co, C/g, ...], got {mask.dtype} {list(mask.shape)}")
    rows = mask.movedim(1, -1).flatten(1).cpu().numpy()
    packed = np.packbits(rows, axis=1, bitorder="little")
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).view("<i4").astype(np.int32)
    return torch.from_numpy(words).to(mask.device)


def unpack_mask(packed: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_mask`: a bool mask of `weight_shape`, on the device of `packed`.

    Raises ValueError when `packed` is not int32 of the shape which `pack_mask` gives such a weight.
    """
    out_channels, in_channels, *taps = weight_shape
    size = in_channels * int(np.prod(taps, dtype=np.int64))
    expected = [out_channels, (size + 31) // 32]
    if packed.dtype != torch.int32 or list(packed.shape) != expected:
        raise ValueError(
            f"packed mask of a weight {list(weight_shape)} must be int32 {expected}, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    octets = packed.cpu().contiguous().numpy().astype("<i4").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=size, bitorder="little").astype(bool)
    mask = torch.from_numpy(bits).reshape(out_channels, *taps, in_channels).movedim(-1, 1)
    return mask.contiguous().to(packed.device)
