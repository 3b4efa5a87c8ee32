"""Masks over a network's raw weights, as a Pruning asks for them, and their packing to one bit per weight.

A mask is a bool tensor of its weight's shape; True means that the weight is kept.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from prefiqs_ext.exceptions import InputError

if TYPE_CHECKING:
    from prefiqs_ext.pruning import Pruning


def make_masks(pruning: Pruning, model: nn.Module) -> dict[str, Tensor]:
    """Makes the masks; see :meth:`prefiqs_ext.Pruning.make_masks`."""
    dense = find_dense_layers(pruning, model)
    weights = {name: weight for name, weight in _find_weights(pruning, model).items() if name not in dense}
    if not weights:
        raise InputError(f"pruning method {pruning.method!r} can prune none of the chosen layers: {', '.join(dense)}")
    if pruning.n_of_m is not None:
        n, m = pruning.n_of_m
        return {name: _keep_n_of_m(_rate_weights(pruning, name, w), n, m) for name, w in weights.items()}
    if pruning.method == "structured":
        return {name: _keep_filters(_rate_weights(pruning, name, w), pruning.sparsity) for name, w in weights.items()}
    groups = [[name] for name in weights] if pruning.scope == "layer" else [list(weights)]
    masks: dict[str, Tensor] = {}
    for names in groups:
        importances = [_rate_weights(pruning, name, weights[name]) for name in names]
        masks.update(zip(names, _keep_weights(importances, pruning.sparsity), strict=True))
    return masks


def find_dense_layers(pruning: Pruning, model: nn.Module) -> list[str]:
    """Finds the layers that stay dense; see :meth:`prefiqs_ext.Pruning.find_dense_layers`."""
    weights = _find_weights(pruning, model)
    if pruning.n_of_m is not None:
        _, m = pruning.n_of_m
        return [name for name, weight in weights.items() if weight.shape[1] % m]
    if pruning.method == "structured" and pruning.layers == "conv+linear":
        return [name for name, weight in weights.items() if weight.dim() == 2][-1:]
    return []


def _find_weights(pruning: Pruning, model: nn.Module) -> dict[str, Tensor]:
    """Finds the weights of the chosen layers by the layers' names."""
    convolutions: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            layers[name] = module.weight.detach()
            if not isinstance(module, nn.Linear):
                convolutions[name] = layers[name]
    if not layers:
        raise InputError(f"the model has no convolution or linear layer to prune: {type(model).__name__}")
    if pruning.layers == "conv+linear":
        return layers
    if pruning.layers == "conv":
        if not convolutions:
            raise InputError("the model has no convolution to prune, only linear layers: use layers='conv+linear'")
        return convolutions
    patterns = (pruning.layers,) if isinstance(pruning.layers, str) else pruning.layers
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            examples = ", ".join(list(layers)[:3])
            raise InputError(f"pattern {pattern!r} matches no convolution or linear layer; there are {examples}, ...")
    return {name: w for name, w in layers.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _rate_weights(pruning: Pruning, name: str, weight: Tensor) -> Tensor:
    """Gives each weight its importance: the lowest ones go first."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"the weight of layer {name!r} has NaN or infinite values: check the checkpoint")
    if pruning.method == "random":
        # The CPU generator keeps 32 bits of its seed: a checksum spreads seed and name over all of them.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{pruning.seed}:{name}".encode()))
        return torch.rand(weight.shape, generator=generator)
    precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.abs().to("cpu", precise).contiguous()


def _keep_weights(importances: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Keeps all but the round(sparsity * n) lowest of the importances, ranked together; of equals the first ones go."""
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
    """Keeps all but the round(sparsity * filters) filters of least sum."""
    sums = importance.flatten(1).double().sum(1)
    mask = torch.ones_like(importance, dtype=torch.bool)
    mask[torch.argsort(sums, stable=True)[: round(sparsity * len(sums))]] = False
    return mask


def _keep_n_of_m(importance: Tensor, n: int, m: int) -> Tensor:
    """Keeps the n largest of every m neighbours along dim 1."""
    last = importance.movedim(1, -1)
    rows = last.reshape(*last.shape[:-1], -1, m)
    removed = torch.argsort(rows, dim=-1, stable=True)[..., : m - n]
    mask = torch.ones_like(rows, dtype=torch.bool).scatter_(-1, removed, False)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def pack_mask(mask: Tensor) -> Tensor:
    """Packs a mask to one bit per weight, in the order in which the kernels read channels_last weights.

    Args:
        mask: bool [Co, K] (linear), [Co, C/g, k] or [Co, C/g, kh, kw] (convolution with g groups), True = keep.

    Returns:
        int32 [Co, ceil(K / 32)] on the mask's device, where K is the number of weights of one output channel. Bit
        k = (r * kw + s) * (C/g) + c belongs to tap (r, s) and channel c, least significant bit first. The last word is
        padded with zeros.

    Raises:
        InputError: The mask has another dtype or fewer than two dimensions.
    """
    if mask.dtype != torch.bool or mask.dim() < 2:
        raise InputError(f"mask must be bool [Co, C/g, ...], got {mask.dtype} {list(mask.shape)}")
    rows = mask.movedim(1, -1).flatten(1).cpu().numpy()
    packed = np.packbits(rows, axis=1, bitorder="little")
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).view("<i4").astype(np.int32)
    return torch.from_numpy(words).to(mask.device)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack what :func:`pack_mask` gave.

    Args:
        packed: int32 [Co, ceil(K / 32)].
        shape: Of the weight: [Co, K] or [Co, C/g, ...].

    Returns:
        The bool mask of that shape on the same device, True = keep.
    """
    filters, channels, *kernel = shape
    rows = np.unpackbits(packed.cpu().numpy().astype("<i4").view(np.uint8), axis=1, bitorder="little")
    taps = torch.from_numpy(rows[:, : channels * math.prod(kernel)].astype(np.bool_)).view(filters, *kernel, channels)
    return taps.movedim(-1, 1).contiguous().to(packed.device)
