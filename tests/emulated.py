"""The CUDA kernels, compiled as plain C++ and run on the CPU by the strict emulator in tests/emulation.

Every call runs twice, with warps in ascending and in descending order: the bits must be the same.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
EMULATION = ROOT / "tests" / "emulation"
EMULATOR = (EMULATION / "buffer.cpp", EMULATION / "emulator.cpp", EMULATION / "driver.cpp")
BUILD = ROOT / "build" / "emulation"
# Every operation is rounded by itself, whatever machine the tests run on.
FLAGS = ("-std=c++20", "-g1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas")

TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.uint8: 3}
TILES = ("wide", "deep", "broad", "middle", "narrow")


class EmulationError(Exception):
    """What the kernel did that a GPU leaves undefined, or a launch that was refused."""


class Plan(NamedTuple):
    tile: str
    segments: int
    split: bool
    blocks: int
    sm90: bool  # the kernel for compute capability 9.0a takes the layer


def compile_sources(folder: Path, csrc: Path, sources: Sequence[Path], *flags: str) -> list[Path]:
    """Objects in ``folder`` of ``sources``, which include kernels of ``csrc``."""
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        include = (f"-I{EMULATION}", f"-I{csrc}")
        command = ["g++", *FLAGS, *flags, *include, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: Sequence[Path], library: Path) -> Path:
    # Under another name first: a library that is loaded must not change.
    fresh = library.with_suffix(f".{os.getpid()}")
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(fresh)], check=True)
    fresh.replace(library)
    return library


def library_of_this_tree() -> Path:
    """The library of csrc/cuda as it is, compiled anew only when a source has changed; one worker compiles for all."""
    csrc = ROOT / "csrc"
    kernels = sorted(csrc.glob("cuda/*.cu"))
    read = [*csrc.glob("*.h"), *csrc.glob("cuda/**/*"), *EMULATION.rglob("*"), Path(__file__)]
    digest = hashlib.sha256()
    for file in sorted(file for file in read if file.is_file()):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = BUILD / "sources.sha256"
        library = BUILD / "emulated.so"
        if not library.exists() or not stamp.exists() or stamp.read_text() != digest.hexdigest():
            link(compile_sources(BUILD, csrc, [*kernels, *EMULATOR], "-O3", "-Werror"), library)
            stamp.write_text(digest.hexdigest())
    return library


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64))


# prefiqs::ConvGeometry, in its order.
_GEOMETRY = (
    *((name, ctypes.c_int64) for name in ("images", "branches", "in_h", "in_w", "in_c", "out_h", "out_w", "out_c")),
    *((name, ctypes.c_int64) for name in ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w")),
    *((name, ctypes.c_int64) for name in ("dilation_h", "dilation_w", "groups")),
    *((name, ctypes.c_bool) for name in ("src_shared", "bias_shared", "residual_shared")),
    ("mask_words", ctypes.c_int64),
    ("slope_stride", ctypes.c_int64),
)


class _ConvCase(ctypes.Structure):
    _fields_ = (
        *_GEOMETRY,
        *((name, ctypes.c_int64) for name in ("compute", "src_type", "dst_type")),
        *((name, _Bytes) for name in ("src", "weight", "mask", "pruned_scale", "bias")),
        *((name, _Bytes) for name in ("tap_shift", "slope", "residual", "dst")),
        *((name, ctypes.c_int64) for name in ("multiprocessors", "tile", "split", "sm90", "descending")),
    )


class _DistanceCase(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "features", "pair_type")),
        *((name, _Bytes) for name in ("pair", "distance", "embedding", "pruned_embedding", "embedding_norm")),
        ("descending", ctypes.c_int64),
    )


class _NormCase(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "features", "step", "src_type")),
        *((name, _Bytes) for name in ("src", "norm")),
        ("descending", ctypes.c_int64),
    )


def _bytes(tensor: Tensor | None) -> _Bytes:
    if tensor is None:
        return _Bytes(None, 0)
    assert tensor.is_contiguous()
    return _Bytes(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


def _conv_case(
    src: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    dst_dtype: torch.dtype,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    paired: bool = False,
    multiprocessors: int = 132,
    tile: str | None = None,
    split: bool | None = None,
    sm90: bool = False,
) -> _ConvCase:
    """Everything but the tensors."""
    rows, channels, in_h, in_w = src.shape
    filters, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = (
        (extent + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i, extent in enumerate((in_h, in_w))
    )
    branches = 2 if paired or mask is not None else 1
    return _ConvCase(
        images=rows // 2 if paired else rows,
        branches=branches,
        in_h=in_h,
        in_w=in_w,
        in_c=channels,
        out_h=out_h,
        out_w=out_w,
        out_c=filters,
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        stride_h=stride[0],
        stride_w=stride[1],
        pad_h=padding[0],
        pad_w=padding[1],
        dilation_h=dilation[0],
        dilation_w=dilation[1],
        groups=groups,
        src_shared=branches == 2 and not paired,
        mask_words=0 if mask is None else mask.shape[1],
        compute=TYPES[weight.dtype],
        src_type=TYPES[src.dtype],
        dst_type=TYPES[dst_dtype],
        multiprocessors=multiprocessors,
        tile=-1 if tile is None else TILES.index(tile),
        split=-1 if split is None else int(split),
        sm90=int(sm90),
    )


class Kernels:
    """The emulated kernels behind the signatures of the operators."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def _call(self, function: str, case: ctypes.Structure, *outputs: Any) -> None:
        message = ctypes.create_string_buffer(512)
        if getattr(self._library, function)(ctypes.byref(case), *outputs, message, ctypes.c_int64(512)) != 0:
            raise EmulationError(message.value.decode())

    def conv2d(
        self,
        src: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        pruned_scale: Tensor | None = None,
        bias: Tensor | None = None,
        tap_shift: Tensor | None = None,
        slope: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        dst_dtype: torch.dtype = torch.float32,
        **rest: Any,
    ) -> Tensor:
        """dual_conv2d on tensors of the operator's layouts, NCHW as torch sees it; ``residual`` is of ``dst_dtype``.

        ``tile`` and ``split`` among ``rest`` force a plan where the layer would get another one.
        """
        case = _conv_case(src, weight, mask, dst_dtype, **rest)
        case.bias_shared = bias is None or bias.dim() == 1
        case.slope_stride = 0 if slope is None or slope.numel() == 1 else 1
        if residual is not None:
            assert residual.dtype == dst_dtype
            case.residual_shared = case.branches == 2 and residual.shape[0] == case.images
        held = {
            "src": _nhwc(src),
            "weight": _nhwc(weight),
            "mask": mask,
            "pruned_scale": pruned_scale,
            "bias": bias,
            "tap_shift": tap_shift,
            "slope": slope,
            "residual": None if residual is None else _nhwc(residual),
        }
        for name, tensor in held.items():
            setattr(case, name, _bytes(tensor))
        results = []
        for case.descending in (0, 1):
            dst = torch.empty(case.branches * case.images, case.out_h, case.out_w, case.out_c, dtype=dst_dtype)
            case.dst = _bytes(dst)
            self._call("emulate_conv", case)
            results.append(dst.permute(0, 3, 1, 2))
        _assert_same_bits(*results)
        return results[0]

    def plan(self, src: Tensor, weight: Tensor, mask: Tensor | None = None, **rest: Any) -> Plan:
        """How the layer would be cut; only shapes are looked at."""
        case = _conv_case(src, weight, mask, torch.float32, **rest)
        case.mask = _Bytes(1 if mask is not None else None, 0)
        out = (ctypes.c_int64 * 5)()
        self._library.plan_conv(ctypes.byref(case), out)
        return Plan(TILES[out[0]], int(out[1]), bool(out[2]), int(out[3]), bool(out[4]))

    def embedding_distance(self, pair: Tensor) -> tuple[Tensor, ...]:
        rows, features = pair.shape[0] // 2, pair.shape[1]
        results = []
        for descending in (False, True):
            outputs = [torch.empty(shape) for shape in ((rows,), (rows, features), (rows, features), (rows,))]
            case = _DistanceCase(rows, features, TYPES[pair.dtype], _bytes(pair), *map(_bytes, outputs), descending)
            self._call("emulate_distance", case)
            results.append(outputs)
        for ascending, other in zip(*results, strict=True):
            _assert_same_bits(ascending, other)
        return tuple(results[0])

    def dense_norm(self, rows: Tensor, features: int) -> Tensor:
        """dense_norm of the first numbers of each row [N, ...]; layouts and pairs are the torch glue's matter."""
        results = []
        for descending in (False, True):
            norm = torch.empty(len(rows))
            size = (len(rows), features, rows.shape[1])
            case = _NormCase(*size, TYPES[rows.dtype], _bytes(rows), _bytes(norm), descending)
            self._call("emulate_norm", case)
            results.append(norm)
        _assert_same_bits(*results)
        return results[0]


def _assert_same_bits(ascending: Tensor, descending: Tensor) -> None:
    size = {2: torch.int16, 4: torch.int32}[ascending.element_size()]
    if not torch.equal(ascending.contiguous().view(size), descending.contiguous().view(size)):
        raise EmulationError("warps in ascending and in descending order give different bits")
