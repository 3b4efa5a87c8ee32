"""Read the tensors of a checkpoint file by their names. Nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

import safetensors.torch
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models.file_kinds import refuse_other_kinds
from prefiqs_ext.models.torch_pickle import read_pickle
from prefiqs_ext.models.torch_unpickler import OddTensor, View
from prefiqs_ext.utils.budget import MAX_NAME_LENGTH, MAX_NESTING, Budget
from prefiqs_ext.utils.text import describe_error, format_untrusted

QUANTISED = "of a quantised network: take the one in float32 that it was made from"

_REASON = 160  # characters of another program's message that an error repeats

# Training scripts put a state dict into a dictionary, under one of these keys. If there are several, the first wins: it
# is the network that is meant for recognition.
_WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "backbone", "model", "net", "network")


def read_state_dict(file: IO[bytes], *, safe: bool) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch checkpoint or a .safetensors file.

    Args:
        file: The open file.
        safe: Whether it is a .safetensors file.

    Returns:
        One or more tensors on the CPU, by their names in the state dict. Dictionaries that training scripts put around
        the state dict are removed.

    Raises:
        FileFormatError: The file is damaged, would do harm, costs too much or has no state dict. The text lacks the
            path.
        UnsupportedNetworkError: The network is quantised.
    """
    refuse_other_kinds(file, "safetensors" if safe else "PyTorch")
    size = file.seek(0, 2)
    file.seek(0)
    if safe:
        return _read_safetensors(file, size)
    content, make_tensor = read_pickle(file, size, Budget(size))
    state = _unwrap(content)
    for name, value in state.items():
        _refuse_odd(name, value)
    return {name: make_tensor(value) for name, value in state.items() if isinstance(value, View)}


def _refuse_odd(name: str, value: object) -> None:
    """Refuse a tensor that is not of ordinary numbers, by what stands for it or by its name, and a very long name."""
    if len(name) > MAX_NAME_LENGTH:
        raise FileFormatError(f"expected names of at most {MAX_NAME_LENGTH} letters, got {format_untrusted(name)}")
    expected = f"expected ordinary dense tensors, {format_untrusted(name)} is"
    if name.endswith(("zero_point", "packed_params")) or (isinstance(value, OddTensor) and value.is_quantised):
        raise UnsupportedNetworkError(f"{expected} {QUANTISED}")
    if isinstance(value, OddTensor):
        raise FileFormatError(f"{expected} sparse or without values")


def _read_safetensors(file: IO[bytes], size: int) -> dict[str, Tensor]:
    data = file.read()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    Budget(size).charge_parts(header.count(b",") + header.count(b":"))
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except Exception as error:  # not all are of safetensors
        reason = format_untrusted(describe_error(error), _REASON)
        raise FileFormatError(f"not a safetensors file, or a damaged one ({reason})") from error
    if not tensors:
        raise FileFormatError("expected tensors, the file has none")
    for name, tensor in tensors.items():
        _refuse_odd(name, tensor)
    return tensors


def _unwrap(content: object) -> dict[str, View | OddTensor]:
    """Return the tensors in the state dict that `content` is or contains, by name."""
    for _ in range(MAX_NESTING):
        if not isinstance(content, Mapping):
            kind = format_untrusted(type(content).__name__)
            raise FileFormatError(f"expected a state dict, the file holds a {kind}")
        inside = (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping))
        outside, content = content, next(inside, None)
        if content is None:
            break
    named = {name: value for name, value in outside.items() if isinstance(name, str)}
    values = {name: value for name, value in named.items() if isinstance(value, (View, OddTensor))}
    if not values:
        names = ", ".join(f"'{format_untrusted(name)}'" for name in list(named)[:5])
        raise FileFormatError(f"expected a state dict, the file holds {names or 'nothing of a name'}")
    return values
