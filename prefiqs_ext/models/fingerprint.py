"""The fingerprint of a network: a hash of its weights."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import InputError

if TYPE_CHECKING:
    from torch import nn


def hash_weights(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's weights, 64 hexadecimal digits: the same whatever file they came from.

    It goes over the names, types, shapes and bytes of parameters and buffers, in the order of their names.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sha256(value: object) -> None:
    """Raises InputError for what is not like the result of :func:`hash_weights`."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise InputError(f"model_sha256 is {value!r}")
