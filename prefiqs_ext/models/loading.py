"""The network that a user names or gives, on the CPU, and the same behind its preset's normalisation."""

from __future__ import annotations

import copy
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prefiqs_ext import models
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.input_size import check_input
from prefiqs_ext.models.preset import Preset


def load_network(
    model: str | PathLike[str] | nn.Module, preset: Preset | str | None
) -> tuple[nn.Module, Preset | None]:
    """A built-in model, a file or a module, and the preset that comes with it; a module brings none.

    preset: what the caller says, which keeps a checkpoint from guessing. ValueError for a name that is no model and no
    file, and for a preset whose images the network is known not to take; what models.load_model raises.
    """
    said = Preset.named(preset) if isinstance(preset, str) else preset
    if isinstance(model, nn.Module) or model in models.BUILT_IN:
        network, own = (_on_cpu(model), None) if isinstance(model, nn.Module) else models.load(str(model))
        if said is not None:
            check_input(network, said)
        return network, own
    if not Path(model).exists():
        built_in = ", ".join(models.BUILT_IN)
        raise InputError(f"expected a built-in model ({built_in}), a file or a torch.nn.Module, got {str(model)!r}")
    return models.load_model(model, said)


class Normalized(nn.Module):
    """A network, as `network`, behind its preset's normalisation: levels of 0-255 in."""

    def __init__(self, preset: Preset, network: nn.Module) -> None:
        super().__init__()
        self.normalize = preset.normalize().eval()
        self.network = network
        self.training = network.training  # dualize refuses a network in train mode; wrapping must not hide it

    def forward(self, images: Tensor) -> Any:
        return self.network(self.normalize(images))


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model itself or, of one that is elsewhere, a copy made without a second one on its device."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return model
    copies: dict[int, Any] = {}
    for tensor in tensors:
        own = tensor.detach().cpu()
        copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(model, copies)
