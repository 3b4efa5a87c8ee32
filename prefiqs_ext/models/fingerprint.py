"""Fingerprints of a network: a hash of its weights, and one of its structure."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import InputError

if TYPE_CHECKING:
    from torch import nn


def hash_weights(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights as 64 hexadecimal digits.

    The hash covers the names, dtypes, shapes and bytes of all parameters and buffers, in the order of their names. So
    it does not depend on the format of the file that the weights came from.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sha256(value: object) -> None:
    """Check that a value looks like a result of :func:`hash_weights`.

    Raises:
        InputError: It is not a text of 64 lower-case hexadecimal digits.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise InputError(f"model_sha256 is {value!r}")


def fingerprint_network(network: nn.Module) -> dict[str, str]:
    """Return two hashes that together say what a network computes.

    For example, two networks with the same weights, one with ReLU and one with tanh, differ in "structure" only.

    Returns:
        A dictionary. "weights" is the result of :func:`hash_weights`. "structure" is the SHA-256 of the modules with
        their settings and of the operations in those modules that are torch.fx graphs.
    """
    from torch import fx

    graphs = [module.code for module in network.modules() if isinstance(module, fx.GraphModule)]
    structure = hashlib.sha256("\n".join([repr(network), *graphs]).encode()).hexdigest()
    return {"weights": hash_weights(network), "structure": structure}
