"""Where and in which dtype a Scorer computes: what may be asked for, what is there, and why something is not."""

from __future__ import annotations

import torch
from torch import nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.ops import _C, cuda_missing, embedding_distance

_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
"""What is computed in, by the kind of device; the first is the default."""
_BATCH_SIZES = {"cpu": 32, "cuda": 256}  # two of a Scorer's chunks on the CPU, one on a GPU
_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies to shared memory


def resolve_device(
    device: torch.device | str | None, dtype: torch.dtype | None, model: object
) -> tuple[torch.device, torch.dtype]:
    """Fills in what a user left open, and refuses what no build computes.

    Args:
        device: "cpu", "cuda" or "cuda:0"; None means the model's own GPU, or the CPU if it is on none.
        dtype: float32 or bfloat16 on the CPU, float16 or bfloat16 on CUDA. None means the first of them.
        model: A network, or anything else, which is on no GPU.

    Returns:
        The device, with its index on CUDA, and the dtype.

    Raises:
        InputError: There is no such device, CUDA cannot be used here (the error says why), or the dtype is not computed
            in there.
    """
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = parameter.device if parameter is not None and parameter.is_cuda else "cpu"
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"expected device 'cpu', 'cuda' or 'cuda:0', got {device!r}") from error
    if place.type not in _DTYPES:
        raise InputError(f"expected device 'cpu' or 'cuda', got {str(device)!r}")
    known = _DTYPES[place.type]
    if dtype is None:
        dtype = known[0]
    if dtype not in known:
        where, other = ("the CPU", "cuda") if place.type == "cpu" else ("CUDA", "cpu")
        raise InputError(
            f"expected dtype {' or '.join(map(str, known))} on {where}, the only ones computed in there, got {dtype}: "
            f"leave dtype out, or use device={other!r}"
        )
    if place.type == "cpu":
        return torch.device("cpu"), dtype
    reason = why_no_cuda(place)
    if reason is not None:
        raise InputError(f"cannot compute on {str(device)!r}: {reason}")
    index = torch.cuda.current_device() if place.index is None else place.index
    return torch.device("cuda", index), dtype


def choose_device() -> str:
    """Chooses "cuda" where it can be used, otherwise "cpu"."""
    return "cpu" if why_no_cuda() else "cuda"


def choose_dtype(device: torch.device | str) -> torch.dtype:
    """Chooses bfloat16 on a CPU that multiplies it, otherwise the default of the device."""
    kind = torch.device(device).type
    return torch.bfloat16 if kind == "cpu" and multiplies_bfloat16() else _DTYPES[kind][0]


def multiplies_bfloat16() -> bool:
    """Tells whether the CPU has instructions that multiply bfloat16. Elsewhere it is converted to float32 first."""
    return _C.cpu_multiplies_bfloat16()


def why_no_cuda(device: torch.device | str = "cuda") -> str | None:
    """Says why this installation cannot compute on a CUDA device.

    Args:
        device: "cuda" or, for a certain one, "cuda:0".

    Returns:
        The reason and a remedy, in one line; None where it can.
    """
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is built without CUDA; install one with CUDA from pytorch.org"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    index, count = torch.device(device).index, torch.cuda.device_count()
    if index is not None and index >= count:
        return f"there are {count} CUDA devices, the last of them cuda:{count - 1}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {'.'.join(map(str, capability))}, "
            f"and the kernels need {'.'.join(map(str, _CAPABILITY))}"
        )
    if cuda_missing is not None:
        return f"{cuda_missing}; install prefiqs_ext again beside a CUDA toolkit (prefiqs info says more)"
    try:
        embedding_distance(torch.ones(2, 1, device=device))
    except RuntimeError as error:
        return " ".join(str(error).split()[:40])
    return None


def choose_batch_size(device: torch.device) -> int:
    """Return how many images to give a Scorer at a time: 32 on the CPU, 256 on a GPU."""
    return _BATCH_SIZES[device.type]
