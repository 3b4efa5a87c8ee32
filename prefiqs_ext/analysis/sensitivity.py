"""The theory behind D: to first order, it is the length of a Jacobian-vector product.

Pruning moves the weights by delta = -(1 - m) * theta, where m is the mask. To first order, the normalised embedding e
then moves by J_theta e . delta (PreFIQs, arXiv 2605.13396, the section on first-order theory). This says what a little
pruning would do. The more is pruned, the less it says about D.
"""

from __future__ import annotations

from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import check_images, scale_to_levels
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
    """Estimate D to first order: the length || J_theta e . delta ||_2 for each image.

    It comes from one forward pass of the plain network in forward-mode differentiation; no pruned network is run.

    Args:
        batch: Images, as Scorer takes them, on the CPU.
        model: A built-in name, a file, or a module in eval mode.
        pruning: Which weights would be pruned.
        preset: The input that the network wants, as Scorer takes it.
        output: Which of the network's several outputs is the embedding, as Scorer takes it.
        chunk: The number of images that run together.

    Returns:
        [N] in the network's dtype, at least 0; LOWER is better, as with D. The two approach each other as sparsity goes
        to 0.

    Raises:
        InputError: the arguments are not as above, or an embedding has no direction.
        InputTypeError: the batch has another type.
    """
    if chunk < 1:
        raise InputError(f"expected chunk of 1 or more, got {chunk}")
    network, named = resolve_network(model, preset)
    if any(module.training for module in network.modules()):
        raise InputError("expected a model in eval mode: call model.eval() first")
    masks = pruning.make_masks(network)
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

        def embed(own: dict[str, Tensor], rows: Tensor = rows) -> Tensor:
            raw = select_embedding(functional_call(network, own, (scale_to_levels(rows, named),)), output)
            return F.normalize(raw, eps=0)

        # Of torch's ways to compute attention, the one that has a forward derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            derivative: Tensor = jvp(embed, (weights,), (moves,))[1]
        lengths.append(torch.linalg.vector_norm(derivative, dim=1))
    result = torch.cat(lengths) if lengths else torch.empty(0)
    if not bool(result.isfinite().all()):
        raise InputError("expected embeddings of finite norm above 0: check these images and the weights")
    return result
