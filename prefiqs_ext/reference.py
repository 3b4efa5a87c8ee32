"""The reference: two plain PyTorch models and one distance. Slow and obvious; everything else is tested against it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.torch_defaults import torch_defaults


def score(
    model: nn.Module,
    batch: Tensor,
    pruning: Pruning = Pruning(),  # noqa: B008, frozen
    *,
    preset: Preset | str | None = None,
    output: int | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> ScoreOutput:
    """PreFIQs (arXiv 2605.13396) by its definition: D = || e - e_pruned ||_2 of the L2-normalised embeddings.

    model: maps a batch to embeddings [N, d]; two copies of it are run in eval mode, the model itself is untouched.
    batch: with a preset, uint8 [N, 3, H, W] RGB of 0-255, or floating RGB in [0, 1]; without, the network's own input.
    output: which of several outputs is the embedding, by index or key; None: the first floating [N, d] with d > 1.
    dtype: what both copies, the batch and every output are computed in.

    Returns distance D [N] in [0, 2], lower is better; quality Q = 1 - D/2 [N] in [0, 1], higher is better; the
    L2-normalised embedding and pruned_embedding [N, d]; embedding_norm [N], the norm of the dense embedding before
    normalisation. A pruned embedding of zeros stays zeros, at distance 1 from any other.
    """
    with torch_defaults(batch.device), torch.no_grad():
        masks = pruning.masks(model)
        dense = copy.deepcopy(model).to(dtype).eval()
        pruned = copy.deepcopy(dense)
        for name, mask in masks.items():
            weight = pruned.get_parameter(f"{name}.weight")
            weight.mul_(mask.to(weight.device))
        x = batch.to(dtype) if preset is None else _network_input(batch, preset, dtype)
        raw, raw_pruned = select_embedding(dense(x), output), select_embedding(pruned(x), output)
        unit, pruned_unit = _l2_normalise(raw), _l2_normalise(raw_pruned)
        # The norm of the difference: sqrt(2 - 2 cos) would cancel where D is small.
        distance = torch.linalg.vector_norm(unit - pruned_unit, dim=1)
        norm = torch.linalg.vector_norm(raw, dim=1)
    return ScoreOutput(distance, 1 - distance / 2, unit, pruned_unit, norm)


def _network_input(batch: Tensor, preset: Preset | str, dtype: torch.dtype) -> Tensor:
    preset = Preset.resolve(preset)
    levels = batch.to(dtype).clamp(0, 1) * 255 if batch.is_floating_point() else batch.to(dtype)
    if preset.colour == "bgr":
        levels = levels.flip(1)
    mean, std = (levels.new_tensor(value).view(1, 3, 1, 1) for value in (preset.mean, preset.std))
    return (levels - mean) / std


def _l2_normalise(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms == 0, torch.zeros_like(rows), rows / norms)
