"""Calls of the native operators as JSON: what they are, how they are drawn, and the tensors that they are made of.

A case has the keys

- ``op``: the operator's name; ``seed``: of the numbers in its tensors
- ``isa``, ``algorithm``: what PREFIQS_CPU_ISA and PREFIQS_CPU_ALGORITHM are set to ("": nothing), where this CPU has
  the one and the layer fits the other; ``threads``
- ``tensors``: by argument, each {shape, strides, offset, dtype, values} and, where that is meant, ``flaw``
- ``settings``: all other arguments
- ``out``: None, or a tensor in the same form; with ``over``, in the memory of that argument
- ``expect``: "result", "error" or "any". A result must be right in any case. Geometry is left to torch: what its
  conv2d refuses must be refused, whatever ``expect`` says.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Case = dict[str, Any]
ISAS = ("scalar", "avx2", "avx512", "avx512bf16", "amx", "avx512bf16-emulated", "amx-emulated")
_ALGORITHMS = ("depthwise", "winograd", "linear", "dot", "amx", "amx_linear", "gemm")
_FLOATS = ("float32", "bfloat16")
HUGE = (2**31, 2**32 + 1, 2**40, 2**47, 2**48, 2**61, 2**62, (2**64 + 2) // 3, 2**63 - 1)
_VALUES = ("normal", "normal", "normal", "normal", "positive", "tiny", "large", "special", "zeros")
_MASKS = ("normal", "normal", "normal", "zeros", "ones", "one bit")
_DTYPES = (*_FLOATS, "uint8", "float64", "float16", "int8", "int16", "int64", "bool", "complex64", "float8_e5m2")
_GUARD = {torch.uint8: 170, torch.int32: 0x5A5A5A5A}  # floats: NaN


def describe(draw: random.Random, shape: Sequence[int], dtype: str = "float32", values: str = "normal") -> Case:
    """A tensor in some layout: dimensions in any order, with gaps, expanded, anywhere in its storage."""
    order = list(range(len(shape)))
    kind = draw.choice(("contiguous", "channels_last", "any"))
    if kind == "channels_last" and len(shape) == 4:
        order = [0, 2, 3, 1]
    if kind == "any":
        draw.shuffle(order)
    step, strides = draw.choice((1, 1, 1, 2, 3)) if kind == "any" else 1, [0] * len(shape)
    for axis in reversed(order):
        strides[axis] = step
        step = step * max(shape[axis], 1) + (draw.choice((0, 0, 0, 1, 5)) if kind == "any" else 0)
    for axis in order:
        if draw.random() < 0.03:
            strides[axis] = 0
    offset = draw.choice((0, 0, 1, 3, 16))
    return {"shape": list(shape), "strides": strides, "offset": offset, "dtype": dtype, "values": values}


def _draw_formats(draw: random.Random, *, image: bool) -> tuple[str, str, str]:
    """The dtypes of src, weight and result. An ``image`` may have 8 bits."""
    weight = draw.choice(_FLOATS)
    if image and draw.random() < 0.1:
        return "uint8", weight, weight
    src = draw.choice(_FLOATS) if weight == "bfloat16" else "float32"
    return src, weight, src


def takes_dtypes(case: Case) -> bool:
    """Whether the operator takes a case's dtypes together."""
    dtypes = {name: tensor["dtype"] for name, tensor in case["tensors"].items()}
    if "weight" not in dtypes:
        return all(dtype in _FLOATS for dtype in dtypes.values())
    src, weight = dtypes.pop("src"), dtypes.pop("weight")
    if src == "uint8":
        if case["op"] != "dual_conv2d" or case["settings"]["paired"]:
            return False
    elif src not in ("float32", weight):
        return False
    result = weight if src == "uint8" else src
    if case["out"] and "over" not in case["out"]:
        dtypes["out"] = case["out"]["dtype"]
    wanted = {"mask": "int32", "residual": result, "out": result}
    return weight in _FLOATS and all(dtype == wanted.get(name, "float32") for name, dtype in dtypes.items())


def _draw_companions(draw: random.Random, filters: int, depth: int) -> Case:
    """Mask, scale and bias of a layer."""
    tensors = {}
    if masked := draw.random() < 0.7:
        tensors["mask"] = describe(draw, (filters, (depth + 31) // 32), "int32", draw.choice(_MASKS))
        if draw.random() < 0.3:
            tensors["pruned_scale"] = describe(draw, (filters,))
    if draw.random() < 0.4:
        rows = (2,) if masked and draw.random() < 0.5 else ()
        tensors["bias"] = describe(draw, (*rows, filters), values=draw.choice(_VALUES))
    return tensors


def _draw_far_window(draw: random.Random, kernel: Sequence[int], image: Sequence[int], axis: int) -> dict[str, int]:
    """Stride, padding and dilation of one axis in millions and more, of which few outputs meet the image."""
    padding = draw.choice((2**20, 2**31 + 7, 2**33))
    dilation = 1 if kernel[axis] == 1 else (2 * padding + image[axis] - 1) // (kernel[axis] - 1) - draw.randint(0, 9)
    left = 2 * padding + image[axis] - 1 - dilation * (kernel[axis] - 1)
    return {"stride": max(1, left // draw.randint(1, 4) - draw.randint(0, 2)), "padding": padding, "dilation": dilation}


def _draw_conv(draw: random.Random, emulated: bool) -> Case:
    """Redraws what multiplies more often than it should for its place among many.

    A tile of the emulated instructions has 32 k and 32 filters, and takes as long when few of them are needed.
    """
    most, unit = draw.choice((2e5, 2e5, 5e5, 5e5, 2e6, 1e7)), 1
    if emulated:
        most, unit = 2e6, 32
    while True:
        case = _draw_any_conv(draw)
        weight, (rows, filters, *image) = case["tensors"]["weight"]["shape"], case.pop("result")
        depth, filters = (-(-number // unit) * unit for number in (math.prod(weight[1:]), filters))
        if depth * filters * rows * math.prod(image) <= most:
            return case


def _draw_any_conv(draw: random.Random) -> Case:
    kernel = [draw.choice((1, 1, 2, 3, 3, 4, 5)) for _ in range(2)]
    kind = draw.choice(("dense", "dense", "wide", "groups", "depthwise"))
    if kind == "wide" and draw.random() < 0.7:
        kernel = [3, 3]  # Winograd's
    image = [draw.choice((1, 2, 3, 5, 8, 8, 13, 21, 40)) for _ in range(2)]
    if draw.random() < 0.05:
        image[draw.randrange(2)] = 0
    groups = draw.randint(2, 40) if kind == "depthwise" else draw.randint(2, 4) if kind == "groups" else 1
    depth = 1 if kind == "depthwise" else draw.randint(32, 70) if kind == "wide" else draw.randint(1, 20)
    filters = groups * (1 if kind == "depthwise" else draw.randint(32, 66) if kind == "wide" else draw.randint(1, 40))
    paired, images = draw.random() < 0.5, draw.choice((0, 1, 1, 1, 2, 2, 3, 17))
    settings: Case = {
        "stride": [draw.choice((1, 1, 2, 3, 7)) for _ in range(2)],
        "padding": [draw.choice((0, 0, 1, 1, 2, 3, 11, 30)) for _ in range(2)],
        "dilation": [draw.choice((1, 1, 1, 1, 2, 3, 9)) for _ in range(2)],
        "groups": groups,
        "paired": paired,
    }
    if kind == "wide" and draw.random() < 0.7:
        settings |= {"stride": [draw.choice((1, 2))] * 2, "dilation": [1, 1]}
    if draw.random() < 0.03 and min(image) > 0:
        axis = draw.randrange(2)
        far = _draw_far_window(draw, kernel, image, axis)
        for name, value in far.items():
            settings[name][axis] = value
    dtype, weight_dtype, result_dtype = _draw_formats(draw, image=not paired)
    tensors = {
        "src": describe(draw, (images * (1 + paired), depth * groups, *image), dtype, draw.choice(_VALUES)),
        "weight": describe(draw, (filters, depth, *kernel), weight_dtype, draw.choice(_VALUES)),
        **_draw_companions(draw, filters, depth * kernel[0] * kernel[1]),
    }
    if draw.random() < 0.3:
        tensors["tap_shift"] = describe(draw, (2 if "mask" in tensors else 1, filters, *kernel))
    if draw.random() < 0.3:
        tensors["slope"] = describe(draw, (draw.choice((1, filters)),), values=draw.choice(("normal", "zeros")))
    spans = [image[a] + 2 * settings["padding"][a] - settings["dilation"][a] * (kernel[a] - 1) - 1 for a in range(2)]
    out = [filters, *(max(0, span // settings["stride"][a] + 1) for a, span in enumerate(spans))]
    rows = images * (1 + (paired or "mask" in tensors))
    if draw.random() < 0.25:
        shared = draw.random() < 0.5
        tensors["residual"] = describe(draw, (images if shared else rows, *out), result_dtype, draw.choice(_VALUES))
    case = {"tensors": tensors, "settings": settings, "expect": "result", "result": [rows, *out]}
    if draw.random() < 0.4:
        case |= _draw_out(draw, [rows, *out], result_dtype, tensors)
    return case


def _draw_out(draw: random.Random, shape: list[int], dtype: str, tensors: Case) -> Case:
    """Where the result goes: a place that is right; seldom, one that is not, or near an argument or over it."""
    strides = [shape[1] * shape[2] * shape[3], 1, shape[1] * shape[3], shape[1]]
    out: Case = {"shape": shape, "strides": strides, "offset": draw.randint(0, 20), "dtype": dtype}
    out["values"] = "normal"
    flaw = draw.random()
    if flaw < 0.06:
        return {"out": out | {"dtype": draw.choice([other for other in _DTYPES if other != dtype])}, "expect": "error"}
    if flaw < 0.12:
        return {"out": describe(draw, shape, dtype), "expect": "any"}
    if flaw < 0.18:
        return {"out": describe(draw, _change_shape(draw, shape), dtype), "expect": "any"}
    if flaw < 0.3:
        out["over"] = draw.choice([name for name, t in tensors.items() if is_of_one_size(t, out)])
        span = find_span(tensors[out["over"]])
        # `offset` is from the argument's first number: apart by a hair on either side, or over each other.
        around = (span, span + 1, -find_span(out), -find_span(out) - 1, span - 1, 1 - find_span(out))
        out["offset"] = draw.choice((*around, draw.randint(-40, span + 40)))
        return {"out": out, "expect": "any"}
    return {"out": out}


def _draw_linear(draw: random.Random, _: bool) -> Case:
    features, outputs = draw.choice(((1, 1), (7, 3), (33, 5), (40, 66), (600, 20), (700, 400), (2049, 130)))
    dtype, weight_dtype, _result = _draw_formats(draw, image=False)
    paired = draw.random() < 0.5
    between = draw.choice(((), (), (), (0,), (3,), (2, 2)))
    rows = draw.randint(0, 9 if features * outputs < 10000 else 3) * (1 + paired)
    tensors = {
        "src": describe(draw, (rows, *between, features), dtype, draw.choice(_VALUES)),
        "weight": describe(draw, (outputs, features), weight_dtype, draw.choice(_VALUES)),
        **_draw_companions(draw, outputs, features),
    }
    return {"tensors": tensors, "settings": {"paired": paired}, "expect": "result"}


def _draw_distance(draw: random.Random, _: bool) -> Case:
    shape = (2 * draw.randint(0, 40), draw.choice((1, 3, 17, 128, 511)))
    pair = describe(draw, shape, draw.choice(_FLOATS), draw.choice(_VALUES))
    return {"tensors": {"pair": pair}, "settings": {}, "expect": "result"}


def _draw_norm(draw: random.Random, _: bool) -> Case:
    paired = draw.random() < 0.5
    rest = [draw.choice((0, 1, 1, 2, 3, 5, 17, 33)) for _ in range(draw.randint(0, 4))]
    if draw.random() < 0.05:
        rest = [3 * 16384 + 5]
    src = describe(draw, (draw.randint(0, 5) * (1 + paired), *rest), draw.choice(_FLOATS), draw.choice(_VALUES))
    return {"tensors": {"src": src}, "settings": {"paired": paired}, "expect": "result"}


_MAKERS: dict[str, Callable[[random.Random, bool], Case]] = {  # the second: for emulated instructions
    "dual_conv2d": _draw_conv,
    "dual_linear": _draw_linear,
    "embedding_distance": _draw_distance,
    "dense_norm": _draw_norm,
}


def draw_case(draw: random.Random, isa: str = "") -> Case:
    """A call, of this instruction set if one is named: most are good, the others have one flaw."""
    op = draw.choices(list(_MAKERS), (14, 3, 1, 2))[0]
    isa = isa or draw.choice(ISAS)
    threads, algorithm = draw.choice((1, 2)), draw.choice(("gemm", *_ALGORITHMS)) if draw.random() < 0.3 else ""
    case: Case = {"op": op, "seed": draw.randrange(2**31), "isa": isa, "threads": threads}
    case |= {"algorithm": algorithm, "out": None} | _MAKERS[op](draw, isa.endswith("emulated"))
    if draw.random() < 0.25:
        flaws = (_spoil_dtype, _spoil_shape, _spoil_shape, _spoil_size, _spoil_setting, _spoil_setting, _spoil_tensor)
        case["expect"] = draw.choice(flaws)(draw, case)
    return case


# --- flaws: each changes a case and returns what is to be expected of it then -----------------------------------------


def _choose_tensor(draw: random.Random, case: Case) -> Case:
    return case["tensors"][draw.choice(sorted(case["tensors"]))]


def _spoil_dtype(draw: random.Random, case: Case) -> str:
    _choose_tensor(draw, case)["dtype"] = draw.choice(_DTYPES)
    return str(case["expect"]) if takes_dtypes(case) else "error"


def _change_shape(draw: random.Random, shape: Sequence[int]) -> list[int]:
    changed, axis = list(shape), draw.randrange(max(len(shape), 1))
    kind = draw.choice(("one more", "one less", "none", "twice", "drop", "add"))
    if kind == "add" or not shape:
        changed.insert(axis, draw.choice((0, 1, 2)))
    elif kind == "drop":
        del changed[axis]
    else:
        size = shape[axis]
        changed[axis] = {"one more": size + 1, "one less": max(0, size - 1), "none": 0, "twice": 2 * size}[kind]
    return changed


def _spoil_shape(draw: random.Random, case: Case) -> str:
    tensor = _choose_tensor(draw, case)
    tensor |= describe(draw, _change_shape(draw, tensor["shape"]), tensor["dtype"], tensor["values"])
    return "any"


def _spoil_size(draw: random.Random, case: Case) -> str:
    """More numbers than any memory holds: one number, expanded."""
    tensor = _choose_tensor(draw, case)
    if not tensor["shape"] or 0 in tensor["shape"]:
        return str(case["expect"])
    axis = draw.randrange(len(tensor["shape"]))
    others = math.prod(tensor["shape"]) // tensor["shape"][axis]
    tensor["shape"][axis] = draw.choice((2**45, 2**46 - 2, 2**48, 2**48 + 2, 2**60, 2**62)) // others + 1
    tensor["strides"] = [0] * len(tensor["shape"])
    return "any"


def _spoil_setting(draw: random.Random, case: Case) -> str:
    settings = case["settings"]
    if not settings:
        return str(case["expect"])
    name = draw.choice(sorted(settings))
    if draw.random() < 0.1:  # of another type, which torch's schema refuses, unless it makes a truth value of it
        settings[name] = draw.choice(("xx", None, 2**63, 2**70))
        return "any" if name == "paired" else "error"
    if isinstance(settings[name], bool):
        settings[name] = not settings[name]
        return "any"
    odd = draw.choice((-1, 0, -(2**63), -(2**31), *HUGE))
    if name == "groups":
        settings[name] = draw.choice((odd, settings[name] + 1))
        return "any"
    if draw.random() < 0.2:
        settings[name] = draw.choice(([], [1], [1, 1, 1]))
        return "error"
    if name == "padding" and 0 < odd < 2**45:
        odd = 2**47  # whose result no memory holds, unless the stride is as long
    settings[name][draw.randrange(2)] = odd
    return "any"


def _spoil_tensor(draw: random.Random, case: Case) -> str:
    """What is wrong with a tensor beside its numbers. Of a "negated" one nothing is: torch materialises it."""
    tensor = _choose_tensor(draw, case)
    flaw = draw.choice(("short storage", "grad", "meta", "sparse", "negated"))
    if tensor["dtype"] in {"grad": _FLOATS, "negated": ("float32",)}.get(flaw, (tensor["dtype"],)):
        tensor["flaw"] = flaw
    return str(case["expect"]) if tensor.get("flaw") in (None, "negated") else "any"


# --- tensors ----------------------------------------------------------------------------------------------------------


def find_span(tensor: Case) -> int:
    """How many numbers lie from a tensor's first to its last."""
    if 0 in tensor["shape"]:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor["shape"], tensor["strides"], strict=True))


def is_of_one_size(a: Case, b: Case) -> bool:
    """Whether numbers of two tensors have as many bytes."""
    size, other = (getattr(torch, tensor["dtype"]).itemsize for tensor in (a, b))
    return bool(size == other)


def draw_values(count: int, dtype: torch.dtype, kind: str, generator: torch.Generator) -> Tensor:
    """Numbers of a kind."""
    if dtype in (torch.uint8, torch.int32):
        if kind in ("zeros", "ones"):
            return torch.full((count,), -(kind == "ones"), dtype=torch.int32).to(dtype)
        words = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
        return (words if kind != "one bit" else words & (torch.arange(count) == count - 1)).to(dtype)
    numbers = torch.randn(count, generator=generator)
    if kind == "special":
        odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-40])  # the last is denormal
        chosen = torch.rand(count, generator=generator) < 2 / max(count, 8)
        numbers = numbers.where(~chosen, odd[torch.randint(5, (count,), generator=generator)])
    scaled = {"positive": numbers.abs(), "tiny": 1e-25 * numbers, "large": 1e30 * numbers, "zeros": 0 * numbers}
    return scaled.get(kind, numbers).to(dtype)


def fill_storage(tensor: Case, numbers: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make a storage of so many numbers. Returns it and where no number of the tensor is, which holds guards."""
    dtype = getattr(torch, tensor["dtype"])
    own = torch.zeros(numbers, dtype=torch.bool)
    strides = tensor["strides"]
    kept = [min(size, 1) if stride == 0 else size for size, stride in zip(tensor["shape"], strides, strict=True)]
    own.as_strided(kept, strides, tensor["offset"]).fill_(True)
    basis = dtype if dtype in _GUARD else torch.float32
    values = draw_values(numbers, basis, tensor["values"], generator)
    guards = torch.full_like(values, _GUARD.get(basis, math.nan))
    return torch.where(own, values, guards).to(dtype), ~own
