"""`prefiqs info`: what is installed here and what it can use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import click
import cv2
import PIL
import torch

from prefiqs_ext import __version__
from prefiqs_ext.cli.weights import lines
from prefiqs_ext.device import why_no_cuda
from prefiqs_ext.models import weights as _weights
from prefiqs_ext.ops import _C


@click.command()
def info() -> None:
    """Show the build, what it uses here, and the weights.

    Worth adding to a bug report. Nothing is fetched and nothing is scored.

    \b
    Example:
      prefiqs info
    """
    for name, fact in _facts():
        click.echo(f"{name:<17}{fact}")
    click.echo("weights")
    for line in lines():
        click.echo(f"  {line}")


def _facts() -> Iterator[tuple[str, str]]:
    yield "prefiqs_ext", f"{__version__} (Apache-2.0)"
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}; this build was made with {_C.built_with_torch}"
    yield "library", str(_C.__file__)
    yield "photos", f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}"
    yield "instruction set", _instruction_set()
    yield "threads", f"{torch.get_num_threads()} of {_cores()} cores; OMP_NUM_THREADS sets another number"
    yield "CUDA", _cuda()
    yield "CUDA kernels", _cuda_kernels()
    origin = "from PREFIQS_HOME" if os.environ.get("PREFIQS_HOME") else "PREFIQS_HOME names another one"
    yield "cache folder", f"{_weights.cache_folder()} ({origin})"


def _instruction_set() -> str:
    try:
        isa = _C.cpu_isa()
    except RuntimeError as error:  # it is here that one looks for what is wrong with PREFIQS_CPU_ISA
        return f"none: {error}"
    return f"{isa} (forced by PREFIQS_CPU_ISA)" if os.environ.get("PREFIQS_CPU_ISA") else f"{isa} (the best here)"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda() -> str:
    reason = why_no_cuda()
    if reason is not None:
        return f"not used: {reason}"
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"in use: {torch.cuda.get_device_name()} (compute capability {capability})"


def _cuda_kernels() -> str:
    if not _C.built_with_nvcc:
        return f"not built: {_C.cuda_left_out}"
    return f"{_C.cuda_architectures}, compiled by nvcc {_C.built_with_nvcc}"
