"""Where and in what a Scorer computes: what may be asked for, what is there, and why not."""

from __future__ import annotations

import torch
from torch import nn

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.ops import cuda_missing, embedding_distance

HALF = (torch.float16, torch.bfloat16)
_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies to shared memory


def resolve(
    device: torch.device | str | None, dtype: torch.dtype | None, model: object
) -> tuple[torch.device, torch.dtype]:
    """What a Scorer was asked for, with None filled in: the model's own GPU, else the CPU; float32 there, float16 here.

    Raises ValueError for what no build computes, and for CUDA where it cannot be used, saying why.
    """
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = parameter.device if parameter is not None and parameter.is_cuda else "cpu"
    place = torch.device(device)
    if place.type == "cpu":
        if dtype not in (None, torch.float32):
            raise InputError(
                f"expected dtype torch.float32 on the CPU, the only one computed in there, got {dtype}: "
                "leave dtype out, or use device='cuda'"
            )
        return torch.device("cpu"), torch.float32
    if place.type != "cuda":
        raise InputError(f"expected device 'cpu' or 'cuda', got {str(device)!r}")
    if dtype not in (None, *HALF):
        raise InputError(
            f"expected dtype torch.float16 or torch.bfloat16 on CUDA, whose kernels multiply half-precision numbers, "
            f"got {dtype}: leave dtype out, or use device='cpu'"
        )
    reason = why_no_cuda(place)
    if reason is not None:
        raise InputError(f"cannot compute on {str(device)!r}: {reason}")
    index = torch.cuda.current_device() if place.index is None else place.index
    return torch.device("cuda", index), dtype or torch.float16


def automatic() -> str:
    """ "cuda" where it can be used, else "cpu"."""
    return "cpu" if why_no_cuda() else "cuda"


def why_no_cuda(device: torch.device | str = "cuda") -> str | None:
    """Why this installation cannot compute on a CUDA device, and what to do; None where it can."""
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
