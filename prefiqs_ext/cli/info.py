"""`prefiqs info`: what is installed here and what it can use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import click

from prefiqs_ext.cli.messages import print_result
from prefiqs_ext.cli.throughput import count_cores
from prefiqs_ext.cli.weights import describe_weights
from prefiqs_ext.models.weights import get_cache_folder


@click.command()
def info() -> None:
    """Show what is installed, what it uses on this machine, and the weights.

    Add it to a bug report. Nothing is fetched and nothing is scored.

    \b
    Example:
      prefiqs info
    """
    for name, fact in _list_facts():
        print_result(f"{name:<17}{fact}")
    print_result("weights")
    for line in describe_weights():
        print_result(f"  {line}")


def _list_facts() -> Iterator[tuple[str, str]]:
    import cv2
    import PIL
    import torch

    from prefiqs_ext.ops import _C
    from prefiqs_ext.version import __version__

    yield "prefiqs_ext", f"{__version__} (Apache-2.0)"
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}; this build was made with {_C.built_with_torch}"
    yield "library", str(_C.__file__)
    yield "photos", f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}"
    yield "instruction set", _describe_instruction_set()
    yield "bfloat16", _describe_bfloat16()
    yield "threads", f"{torch.get_num_threads()} of {count_cores()} cores; OMP_NUM_THREADS sets another number"
    yield "CUDA", _describe_cuda()
    yield "CUDA kernels", _describe_cuda_kernels()
    origin = "from PREFIQS_HOME" if os.environ.get("PREFIQS_HOME") else "PREFIQS_HOME names another one"
    yield "cache folder", f"{get_cache_folder()} ({origin})"


def _describe_instruction_set() -> str:
    from prefiqs_ext.ops import _C

    try:
        isa = _C.cpu_isa()
    except RuntimeError as error:  # it is here that one looks for what is wrong with PREFIQS_CPU_ISA
        return f"none: {error}"
    if os.environ.get("PREFIQS_CPU_ISA"):
        return f"{isa} (forced by PREFIQS_CPU_ISA)"
    if _C.cpu_tiles_refused():
        return f"{isa} (the best here, as the system refuses the memory for AMX tiles)"
    return f"{isa} (the best here)"


def _describe_bfloat16() -> str:
    from prefiqs_ext.device import multiplies_bfloat16

    try:
        native = multiplies_bfloat16()
    except RuntimeError as error:
        return f"none: {error}"
    if native:
        return "multiplied by this CPU: --dtype auto takes it"
    return "not multiplied by this CPU: --dtype bfloat16 saves memory only"


def _describe_cuda() -> str:
    import torch

    from prefiqs_ext.device import why_no_cuda

    reason = why_no_cuda()
    if reason is not None:
        return f"not used: {reason}"
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"in use: {torch.cuda.get_device_name()} (compute capability {capability})"


def _describe_cuda_kernels() -> str:
    from prefiqs_ext.ops import _C

    if not _C.built_with_nvcc:
        return f"not built: {_C.cuda_left_out}"
    return f"{_C.cuda_architectures}, compiled by nvcc {_C.built_with_nvcc}"
