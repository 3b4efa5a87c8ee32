"""What is pruned: masks over a network's raw weights, and their packing to one bit per weight.

PreFIQs (arXiv 2605.13396) prunes without structure, by magnitude, 40 % of the weights; beside it, it studies random
weights and whole filters. A mask depends on the weights
alone: no image, no label, no gradient. It must be taken from the RAW weights: folding batch norm into them first would
rescale |w| and choose other weights.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from prefiqs_ext.exceptions import InputError

if TYPE_CHECKING:  # imported where it is used: the command line reads the names above without torch
    from torch import Tensor, nn

METHODS = ("magnitude", "random", "structured")
"""The names of pruning methods; beside them "n:m" in numbers, such as "2:4"."""

_DEFAULT_SPARSITY = 0.4
_SCOPES = ("layer", "global")
_LARGEST_M = 64


@dataclass(frozen=True)
class Pruning:
    """Which weights the pruned branch loses.

    method: "magnitude" ranks weights by |w|; "random" by a uniform number drawn per weight, from one CPU generator per
        layer seeded by `seed` and the layer's name, so a layer's mask does not depend on which other layers are pruned.
        "structured" removes whole filters, ranked by the L1 norm of their weights (torch.nn.utils.prune.ln_structured,
        n=1, dim=0); shapes, biases and following layers stay as they are (so a removed filter's batch norm still leaves
        a constant; removing dependants, as DepGraph does, is another thing), and so does the last linear layer, whose
        filters are the embedding's coordinates, unless a pattern names it. "2:4", or any n:m of 1 <= n < m <= 64, keeps
        of every m weights along the input channels the n largest; a layer whose input channels (per group) m does not
        divide stays dense: `kept_dense` lists those.
    sparsity: the fraction removed, in [0, 1). Exactly Python's round(sparsity * n) of n weights go, the lowest ranked;
        among equals the lowest flat index of the weight as torch stores its shape (OIHW for a convolution) goes first.
        Of filters likewise. Left out, it is 0.4, the paper's, and with "n:m" 1 - n/m, the only value that this takes.
    scope: "layer" ranks each layer by itself; "global" ranks all chosen layers together, equal weights going in the
        order of `model.named_modules()`; only for "magnitude" and "random".
    layers: "conv" (every Conv1d and Conv2d: depthwise, shortcut and stem included), "conv+linear" (those and every
        Linear), or one or more fnmatch patterns over the names of such modules, case-sensitive.
    seed: read by "random" only.

    A module used in several places is one layer.
    Raises ValueError for a value outside these.
    """

    method: Literal["magnitude", "random", "structured"] | str = "magnitude"
    sparsity: float = None  # type: ignore[assignment]  # a number in every instance
    scope: Literal["layer", "global"] = "layer"
    layers: str | Sequence[str] = "conv"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS and self._n_of_m is None:
            raise InputError(
                f"pruning method must be one of {', '.join(METHODS)}, or n:m such as '2:4', got {self.method!r}"
            )
        if self.scope not in _SCOPES:
            raise InputError(f"pruning scope must be one of {', '.join(_SCOPES)}, got {self.scope!r}")
        if self.scope == "global" and self.method not in ("magnitude", "random"):
            raise InputError(f"pruning method {self.method!r} ranks each layer by itself: use scope='layer'")
        n, m = self._n_of_m or (None, None)
        own = _DEFAULT_SPARSITY if n is None or m is None else (m - n) / m
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", own)
        if isinstance(self.sparsity, bool) or not isinstance(self.sparsity, (int, float)) or not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity must be a number in [0, 1), got {self.sparsity!r}")
        if n is not None:
            if not math.isclose(self.sparsity, own):
                raise InputError(
                    f"pruning method {self.method!r} has sparsity {own:g}, got {self.sparsity!r}: leave sparsity out"
                )
            object.__setattr__(self, "sparsity", own)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"pruning seed must be an integer, got {self.seed!r}")
        if not isinstance(self.layers, str):
            patterns = tuple(self.layers)
            if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
                raise InputError(f"layers must be 'conv', 'conv+linear' or name patterns, got {self.layers!r}")
            object.__setattr__(self, "layers", patterns)  # a list would make the dataclass unhashable

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Module name -> bool mask of its weight's shape, on the CPU, True = keep, in named_modules order.

        The model is only read. Beside the masks (one byte per weight) this needs, at its peak, 8 bytes per weight of
        the largest layer (scope "layer") or of all chosen layers (scope "global"); 16 for float64 weights.

        Raises ValueError when no layer is chosen or can be pruned, a pattern matches none, or a chosen weight is NaN or
        infinite.
        """
        dense = self.kept_dense(model)
        weights = {name: weight for name, weight in self._weights(model).items() if name not in dense}
        if not weights:
            raise InputError(f"pruning method {self.method!r} can prune none of the chosen layers: {', '.join(dense)}")
        if self._n_of_m is not None:
            return {name: _keep_n_of_m(self._importance(name, w), *self._n_of_m) for name, w in weights.items()}
        if self.method == "structured":
            return {name: _keep_filters(self._importance(name, w), self.sparsity) for name, w in weights.items()}
        groups = [[name] for name in weights] if self.scope == "layer" else [list(weights)]
        masks: dict[str, Tensor] = {}
        for names in groups:
            importances = [self._importance(name, weights[name]) for name in names]
            masks.update(zip(names, _keep(importances, self.sparsity), strict=True))
        return masks

    def kept_dense(self, model: nn.Module) -> list[str]:
        """The chosen layers that the method leaves as they are: of "n:m", those it does not divide; of "structured",
        the last linear layer."""
        weights = self._weights(model)
        if self._n_of_m is not None:
            return [name for name, weight in weights.items() if weight.shape[1] % self._n_of_m[1]]
        if self.method == "structured" and self.layers == "conv+linear":
            return [name for name, weight in weights.items() if weight.dim() == 2][-1:]
        return []

    @property
    def _n_of_m(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.method) if isinstance(self.method, str) else None
        if match is None:
            return None
        n, m = int(match[1]), int(match[2])
        return (n, m) if n < m <= _LARGEST_M else None

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        from torch import nn

        convolutions: dict[str, Tensor] = {}
        layers: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                layers[name] = module.weight.detach()
                if not isinstance(module, nn.Linear):
                    convolutions[name] = layers[name]
        if not layers:
            raise InputError(f"the model has no convolution or linear layer to prune: {type(model).__name__}")
        if self.layers == "conv+linear":
            return layers
        if self.layers == "conv":
            if not convolutions:
                raise InputError("the model has no convolution to prune, only linear layers: use layers='conv+linear'")
            return convolutions
        patterns = (self.layers,) if isinstance(self.layers, str) else self.layers
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                examples = ", ".join(list(layers)[:3])
                raise InputError(
                    f"pattern {pattern!r} matches no convolution or linear layer; there are {examples}, ..."
                )
        return {name: w for name, w in layers.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}

    def _importance(self, name: str, weight: Tensor) -> Tensor:
        import torch

        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"the weight of layer {name!r} has NaN or infinite values: check the checkpoint")
        if self.method == "random":
            # The CPU generator keeps 32 bits of its seed: a checksum spreads seed and name over all of them.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
            return torch.rand(weight.shape, generator=generator)
        precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return weight.abs().to("cpu", precise).contiguous()


def _keep(importances: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """True for all but the round(sparsity * n) lowest of the importances ranked together; equals go first to last."""
    import numpy as np
    import torch

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


def _keep_filters(importance: Tensor, sparsity: float) -> Tensor:
    """True in all but the round(sparsity * filters) filters of least sum."""
    import torch

    sums = importance.flatten(1).double().sum(1)
    mask = torch.ones_like(importance, dtype=torch.bool)
    mask[torch.argsort(sums, stable=True)[: round(sparsity * len(sums))]] = False
    return mask


def _keep_n_of_m(importance: Tensor, n: int, m: int) -> Tensor:
    """True for the n largest of every m neighbours along dim 1."""
    import torch

    last = importance.movedim(1, -1)
    rows = last.reshape(*last.shape[:-1], -1, m)
    removed = torch.argsort(rows, dim=-1, stable=True)[..., : m - n]
    mask = torch.ones_like(rows, dtype=torch.bool).scatter_(-1, removed, False)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def pack_mask(mask: Tensor) -> Tensor:
    """One bit per weight, in the order in which the kernels read channels_last weights.

    mask: bool [Co, K] (linear), [Co, C/g, k] or [Co, C/g, kh, kw] (convolution with g groups), True = keep.
    Returns int32 [Co, ceil(K / 32)] on the mask's device, K the weights of one output channel: bit
    k = (r * kw + s) * (C/g) + c, least significant first; the last word is padded with zeros.
    Raises ValueError for another dtype or fewer than two dimensions.
    """
    import numpy as np
    import torch

    if mask.dtype != torch.bool or mask.dim() < 2:
        raise InputError(f"mask must be bool [Co, C/g, ...], got {mask.dtype} {list(mask.shape)}")
    rows = mask.movedim(1, -1).flatten(1).cpu().numpy()
    packed = np.packbits(rows, axis=1, bitorder="little")
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).view("<i4").astype(np.int32)
    return torch.from_numpy(words).to(mask.device)


def unpack_mask(packed: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_mask`: a bool mask of `weight_shape`, on the device of `packed`.

    Raises ValueError when `packed` is not int32 of the shape which `pack_mask` gives such a weight.
    """
    import numpy as np
    import torch

    out_channels, in_channels, *taps = weight_shape
    size = in_channels * int(np.prod(taps, dtype=np.int64))
    expected = [out_channels, (size + 31) // 32]
    if packed.dtype != torch.int32 or list(packed.shape) != expected:
        raise InputError(
            f"packed mask of a weight {list(weight_shape)} must be int32 {expected}, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    octets = packed.cpu().contiguous().numpy().astype("<i4").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=size, bitorder="little").astype(bool)
    mask = torch.from_numpy(bits).reshape(out_channels, *taps, in_channels).movedim(-1, 1)
    return mask.contiguous().to(packed.device)
