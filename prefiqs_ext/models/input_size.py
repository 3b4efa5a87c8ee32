"""Check that a preset gives images of the size that a network takes.

The check matters: with a preset of another size, many networks give embeddings that look plausible but are wrong.
"""

from __future__ import annotations

from torch import nn

from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.dlib import DlibResNet
from prefiqs_ext.models.ir import IR
from prefiqs_ext.models.iresnet import IResNet
from prefiqs_ext.models.mobilefacenet import MobileFaceNet
from prefiqs_ext.models.onnx_import import ImportedNetwork
from prefiqs_ext.models.preset import Preset


def check_input(network: nn.Module, preset: Preset) -> None:
    """Check that a network takes the images of a preset, as far as the network or its file tells.

    Raises:
        UnsupportedNetworkError: The network takes images of another size, or no colour images.
    """
    declared = _get_declared_input(network)
    if declared is None:
        return
    if len(declared) != 4 or declared[1] not in (None, 3):
        text = ", ".join("?" if size is None else str(size) for size in declared[1:])
        raise UnsupportedNetworkError(f"expected a network of colour images [N, 3, H, W], this one takes [N, {text}]")
    size = declared[2] or preset.size[0], declared[3] or preset.size[1]
    if size != preset.size:
        raise UnsupportedNetworkError(
            f"expected a preset of the network's size {size}, got {preset.size} ({preset.name!r}): pass it "
            f"with_size({size}), on the command line --size {size[0]}x{size[1]}"
        )


def _get_declared_input(network: nn.Module) -> tuple[int | None, ...] | None:
    """Return the input shape ``[N, C, H, W]`` that a network declares, with None for an open size; or None."""
    if isinstance(network, IResNet | IR | MobileFaceNet | DlibResNet):
        return None, 3, network.input_size, network.input_size
    return network.declared_input if isinstance(network, ImportedNetwork) else None
