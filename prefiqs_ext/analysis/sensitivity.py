"""The theory behind D: to first order, it is the length of a Jacobian-vector product.

Pruning moves the weights by delta = -(1 - m) * theta, where m is the mask. To first order, the normalised embedding e
then moves by J_theta e . delta (PreFIQs, arXiv 2605.13396, the section on first-order theory). This says what a little
pruning would do. The more is pruned, the less it says about D.

Recalibrated, pruning moves three things at once: the weights by delta, the gains of the pruned layers from 1 to g, and
their shifts from 0 to s. The estimate is then the derivative along that path, weights theta + t * delta, gains
1 + t * (g - 1) and shifts t * s, at t = 0. D to first order again, as g and s are themselves of first order in delta.
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
from prefiqs_ext.recalibration import ChannelScale, RecalibratedLayers, Recalibration
from prefiqs_ext.utils.torch_defaults import torch_defaults


@torch_defaults()
def sensitivity(
    batch: Tensor,
    model: str | PathLike[str] | nn.Module = "sface",
    pruning: Pruning = Pruning(sparsity=0.1),  # noqa: B008, frozen
    *,
    preset: Preset | str | None = None,
    output: int | str | None = None,
    recalibration: Recalibration | None = None,
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
        recalibration: The gains and shifts of the pruned layers, as `Scorer.recalibration` has them for this network
            and pruning. None: D is not recalibrated.
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
    if recalibration is not None:
        recalibration.check_masks(masks)
    scales = {} if recalibration is None else recalibration.layers
    # By layer: the weight, and the gain and shift if it is recalibrated; and how they move.
    own: dict[str, tuple[Tensor, ...]] = {}
    moves: dict[str, tuple[Tensor, ...]] = {}
    for name, mask in masks.items():
        weight = network.get_parameter(f"{prefix}{name}.weight").detach()
        own[name], moves[name] = (weight,), (torch.where(mask, 0, -weight),)
        if name in scales:
            gain, shift = (vector.to(weight) for vector in scales[name])
            own[name] += (torch.ones_like(gain), torch.zeros_like(shift))
            moves[name] += (gain - 1, shift)
    lengths = []
    for rows in torch.split(batch, chunk) if len(batch) else ():

        def embed(layers: dict[str, tuple[Tensor, ...]], rows: Tensor = rows) -> Tensor:
            weights = {f"{prefix}{name}.weight": weight for name, (weight, *_) in layers.items()}
            recalibrated = RecalibratedLayers()
            for weight, *scale in layers.values():
                if scale:
                    recalibrated.add(weight, ChannelScale(*scale))
            with recalibrated:
                raw = functional_call(network, weights, (scale_to_levels(rows, named),), tie_weights=False)
            return F.normalize(select_embedding(raw, output), eps=0)

        # Of torch's ways to compute attention, the one that has a forward derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            derivative: Tensor = jvp(embed, (own,), (moves,))[1]
        lengths.append(torch.linalg.vector_norm(derivative, dim=1))
    result = torch.cat(lengths) if lengths else torch.empty(0)
    if not bool(result.isfinite().all()):
        raise InputError("expected embeddings of finite norm above 0: check these images and the weights")
    return result
