"""The reference: two plain PyTorch models and one distance. It is slow and obvious; all else is tested against it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.recalibration import RecalibratedLayers, Recalibration
from prefiqs_ext.utils.torch_defaults import torch_defaults


def score(
    model: nn.Module,
    batch: Tensor,
    pruning: Pruning = Pruning(),  # noqa: B008, frozen
    *,
    preset: Preset | str | None = None,
    output: int | str | None = None,
    recalibration: Recalibration | None = None,
    dtype: torch.dtype = torch.float64,
) -> ScoreOutput:
    """Scores a batch by the definition of PreFIQs (arXiv 2605.13396).

    >>> network, preset = prefiqs_ext.models.load("sface")
    >>> expected = prefiqs_ext.reference.score(network, crops[:2], preset=preset)
    >>> bool((prefiqs_ext.score(crops[:2]).distance - expected.distance).abs().max() < 1e-5)
    True

    D is the length of e - e_pruned, the difference of the two normalised embeddings.

    Args:
        model: maps a batch to embeddings ``[N, d]``. Two copies of it run in eval mode; the model is not changed.
        batch: with a preset, RGB ``[N, 3, H, W]``, uint8 of 0-255 or floating of [0, 1]; without, the network's input.
        pruning: what the pruned copy loses.
        preset: the input that the network was trained on, or its name.
        output: which of several outputs is the embedding, by index or key. None: the first floating one ``[N, d]`` with
            d > 1.
        recalibration: gains and shifts for the raw outputs of the pruned layers, as ``Scorer.recalibration`` has them.
        dtype: what both copies, the batch and the results are computed in.

    Returns:
        :class:`ScoreOutput` in `dtype`. A pruned embedding of zeros stays zeros, at distance 1 from any other.
    """
    with torch_defaults(batch.device), torch.no_grad():
        masks = pruning.make_masks(model)
        if recalibration is not None:
            recalibration.check_masks(masks)
        scales = {} if recalibration is None else recalibration.layers
        dense = copy.deepcopy(model).to(dtype).eval()
        pruned = copy.deepcopy(dense)
        recalibrated = RecalibratedLayers()
        for name, mask in masks.items():
            weight = pruned.get_parameter(f"{name}.weight")
            masked = nn.Parameter(weight * mask.to(weight.device))
            pruned.get_submodule(name).register_parameter("weight", masked)
            if name in scales:
                recalibrated.add(masked, scales[name])
        x = batch.to(dtype) if preset is None else _network_input(batch, preset, dtype)
        raw = select_embedding(dense(x), output)
        with recalibrated:
            raw_pruned = select_embedding(pruned(x), output)
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
