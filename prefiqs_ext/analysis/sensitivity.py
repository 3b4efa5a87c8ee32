"""The theory behind the drift: to first order, D is the length of a Jacobian-vector product.

Pruning moves the weights by delta = -(1 - m) * theta; the normalised embedding e then moves by J_theta e . delta, to
first order (PreFIQs, arXiv 2605.13396, the section on first-order theory). It tells what a little pruning would do;
the more is pruned, the less it has to do with D.
"""

from __future__ import annotations

from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import check_images, levels
from prefiqs_ext.models.embedding import select_embedding
from prefiqs_ext.models.loading import resolve_network
from prefiqs_ext.models.normalize import NormalizedNetwork
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.utils.torch_defaults import torch_defaults


@torch_defaults()
def sensitivity(
    batch: Tensor,
    model: str | PathLike[str] | nn.Module = "sface",
    pruning: Pruning = Pruning(sparsity=0.1),  # noqa: B008, frozen
    *,
    preset: Preset | str | None = None,
    output: int | str | None = None,
    chunk: int = 16,
) -> Tensor:
    """|| J_theta e . delta ||_2 of each image, by forward-mode differentiation of the plain network: no embedding is
    computed twice, and no pruned network is.

    batch, model, pruning, preset, output: as Scorer takes them, on the CPU. chunk: images run together.
    Returns [N] in the network's dtype, at least 0, LOWER is better, like D, which it approaches as sparsity goes to 0.
    TypeError, ValueError: naming what was expected and what came; a row whose embedding has no direction raises too.
    """
    if chunk < 1:
        raise InputError(f"expected chunk of 1 or more, got {chunk}")
    network, named = resolve_network(model, preset)
    if any(module.training for module in network.modules()):
        raise InputError("expected a model in eval mode: call model.eval() first")
    masks = pruning.masks(network)
    check_images(batch, named)
    prefix = ""
    if named is not None:
        network, prefix = NormalizedNetwork(named, network), "network."
    weights, moves = {}, {}
    for name, mask in masks.items():
        weight = network.get_parameter(f"{prefix}{name}.weight").detach()
        weights[f"{prefix}{name}.weight"] = weight
        moves[f"{prefix}{name}.weight"] = torch.where(mask, 0, -weight)
    lengths = []
    for rows in torch.split(batch, chunk) if len(batch) else ():

        def normalised(own: dict[str, Tensor], rows: Tensor = rows) -> Tensor:
            raw = select_embedding(functional_call(network, own, (levels(rows, named),)), output)
            return F.normalize(raw, eps=0)

        # Of torch's ways to compute attention, the one that has a forward derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            derivative: Tensor = jvp(normalised, (weights,), (moves,))[1]
        lengths.append(torch.linalg.vector_norm(derivative, dim=1))
    result = torch.cat(lengths) if lengths else torch.empty(0)
    if not bool(result.isfinite().all()):
        raise InputError("expected embeddings of finite norm above 0: check these images and the weights")
    return result
