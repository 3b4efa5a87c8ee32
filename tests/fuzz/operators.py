"""The native operators against torch in float64, in calls that are drawn at random (operator_cases.py).

What must hold of every call: it gives the right result or an error of one line; the fake kernels say the same; inputs,
the gaps in them and what lies around `out` stay as they are; a row has the same bits by any number of threads, alone,
and in `out`.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefiqs_ext import _C, ops
from tests import oracle
from tests.fuzz.operator_cases import Case, draw_case, fill_storage, find_span, is_of_one_size, takes_dtypes

UNIT = 2.0**-24
"""The relative error of a float32 operation."""

_MOST = torch.finfo(torch.float32).max
_TINY = 2.0**-149
_NORMAL = torch.finfo(torch.float32).tiny
_FEW = 1 << 20  # numbers that are no matter to make
_MEMORY = ("expected memory for", "with a storage of", "expected out apart from all inputs")
"""What only native kernels can know of."""

_TORCHS = ("Expected a value of type", "Could not run", "Overflow when unpacking long")
"""How torch begins to refuse a call that never reaches an operator."""


class OperatorTarget:
    """All operators."""

    name = "operators"

    def make(self, random: random.Random) -> bytes:
        """Draw a call."""
        return json.dumps(draw_case(random)).encode()

    def run(self, data: bytes) -> None:
        """Check a call; a finding is an AssertionError."""
        check_case(json.loads(data))


TARGETS = (OperatorTarget(),)

# Torch imports much more when it first meets a tensor without data, which no input should be charged for.
torch.nn.functional.conv2d(*(torch.empty(1, 1, 1, 1, device="meta") for _ in range(2)))


class Call:
    """A case's tensors and arguments.

    Attributes:
        inputs: All arguments but ``out``.
        out: Where the result goes, if anywhere.
        overlaps: Whether ``out`` has a number in common with an argument.
    """

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(case["seed"])
        self.inputs: dict[str, Any] = dict(case["settings"])
        self.out: Tensor | None = None
        self.overlaps = False
        self._kept: list[tuple[Tensor, Tensor, Tensor | None]] = []  # storage, a copy, what must not change of it
        for name, tensor in case["tensors"].items():
            over = case["out"] and case["out"].get("over") == name and is_of_one_size(tensor, case["out"])
            out = case["out"] if over else None
            self.inputs[name] = self._make(tensor, generator, out)
        if case["out"] and "over" not in case["out"]:
            self.out = self._place(case["out"], generator, may_change=True)

    def _make(self, tensor: Case, generator: torch.Generator, out: Case | None) -> Tensor:
        """Make an argument, and ``out`` in the same memory if it is to be there."""
        if out is not None:
            before, after = max(0, -out["offset"]), max(0, out["offset"] + find_span(out) - find_span(tensor))
            made = self._place(tensor | {"offset": before}, generator, may_change=True, after=after)
            storage, copy, around = self._kept.pop()
            whole = storage.view(getattr(torch, out["dtype"]))
            self.out = whole.as_strided(out["shape"], out["strides"], before + out["offset"])
            written = torch.zeros(len(storage), dtype=torch.bool)
            written.as_strided(out["shape"], out["strides"], before + out["offset"]).fill_(True)
            self._kept.append((storage, copy, ~written))
            # Of a negated view torch makes a copy first, which is apart from the result.
            self.overlaps = tensor.get("flaw") != "negated" and bool((written & ~around).any())
        else:
            made = self._place(tensor, generator)
        return spoil(made, tensor.get("flaw"))

    def _place(self, tensor: Case, generator: torch.Generator, *, may_change: bool = False, after: int = 7) -> Tensor:
        storage, around = fill_storage(tensor, tensor["offset"] + find_span(tensor) + after, generator)
        self._kept.append((storage, storage.clone(), around if may_change else None))
        return storage.as_strided(tensor["shape"], tensor["strides"], tensor["offset"])

    def run(self, op: str) -> tuple[Tensor, ...]:
        """Call the operator; by the algorithm that fits, where the forced one does not."""
        try:
            result = getattr(ops, op)(**self.inputs, **({} if self.out is None else {"out": self.out}))
        except RuntimeError as error:
            if not str(error).startswith("PREFIQS_CPU_ALGORITHM: expected"):
                raise
            assert os.environ.pop("PREFIQS_CPU_ALGORITHM") not in ("", "gemm"), "the general algorithm does not fit"
            return self.run(op)
        return result if isinstance(result, tuple) else (result,)

    def run_fake(self, op: str) -> tuple[Tensor, ...]:
        """Call its fake kernel, by tensors of the same layouts."""

        def fake(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            return torch.empty(0, dtype=t.dtype, device="meta").as_strided(t.shape, t.stride(), t.storage_offset())

        inputs = {name: fake(value) for name, value in self.inputs.items()}
        result = getattr(ops, op)(**inputs, **({} if self.out is None else {"out": fake(self.out)}))
        return result if isinstance(result, tuple) else (result,)

    def assert_untouched(self) -> None:
        """Assert that nothing has changed but ``out``."""
        for storage, before, fixed in self._kept:
            now, then = (t.view(torch.uint8).view(len(t), -1) if len(t) else t for t in (storage, before))
            assert torch.equal(now if fixed is None else now[fixed], then if fixed is None else then[fixed]), "written"


def spoil(tensor: Tensor, flaw: str | None) -> Tensor:
    """What is wrong with a tensor beside its numbers, or odd."""
    if flaw == "short storage" and tensor.numel() > 0:
        tensor = tensor.clone()
        tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() - 1)
    if flaw == "grad":
        return tensor.clone().requires_grad_()
    if flaw == "meta":
        return tensor.to("meta")
    if flaw == "sparse":
        return tensor.to_sparse()
    if flaw == "negated" and tensor.dtype == torch.float32:
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    return tensor


@contextmanager
def set_up(case: Case) -> Iterator[None]:
    """Threads, instruction set (where this CPU has it) and algorithm of a case."""
    threads, before = torch.get_num_threads(), dict(os.environ)
    try:
        torch.set_num_threads(case["threads"])
        os.environ |= {"PREFIQS_CPU_ISA": case["isa"], "PREFIQS_CPU_ALGORITHM": case["algorithm"]}
        try:
            _C.cpu_isa()
        except RuntimeError:
            del os.environ["PREFIQS_CPU_ISA"]
        yield
    finally:
        torch.set_num_threads(threads)
        for name in ("PREFIQS_CPU_ISA", "PREFIQS_CPU_ALGORITHM"):
            os.environ.pop(name, None)
            os.environ |= {name: before[name]} if name in before else {}


def check_case(case: Case) -> str:
    """Run a case. Returns what became of it: "result", "empty" or "error"."""
    with set_up(case):
        call = Call(case)
        try:
            results = call.run(case["op"])
        except (RuntimeError, TypeError) as error:
            torch.set_num_threads(1)
            call.assert_untouched()
            _check_error(case, call, str(error))
            return "error"
        call.assert_untouched()
        assert case["expect"] != "error", "accepted"
        assert takes_dtypes(case), "accepted dtypes that do not go together"
        assert not call.overlaps, "accepted a result over an argument"
        if case["op"] == "dual_conv2d":
            assert not is_refused_by_torch(call.inputs), "accepted what torch refuses"
        with torch.no_grad():
            fakes = call.run_fake(case["op"])
        for result, fake in zip(results, fakes, strict=True):
            assert (result.shape, result.dtype) == (fake.shape, fake.dtype), "not as the fake kernel says"
            assert call.out is not None or result.stride() == fake.stride(), "not laid out as the fake kernel says"
        if all(result.numel() == 0 or result.is_meta for result in results):
            return "empty"
        _check_bits(case, call, results)
        torch.set_num_threads(1)
        _check_values(case["op"], call.inputs, results)
        return "result"


def _check_error(case: Case, call: Call, message: str) -> None:
    if any(words in message for words in _TORCHS):
        assert case["expect"] != "result", f"torch refuses it: {message}"
        return
    assert message.startswith(f"prefiqs_ext::{case['op']}: expected") or _is_of_geometry(case, message), message
    assert message.isprintable(), f"more than one line: {message!r}"
    assert len(message) < 500, f"{len(message)} characters"
    by_torch = case["op"] == "dual_conv2d" and is_refused_by_torch(call.inputs)
    assert case["expect"] != "result" or by_torch, f"refused: {message}"
    if any(words in message for words in _MEMORY) or any(t.get("flaw") for t in case["tensors"].values()):
        return
    said = ""
    try:
        call.run_fake(case["op"])
    except RuntimeError as error:
        said = str(error)
    assert said == message, f"the fake kernel says {said!r}, the native one {message!r}"


def _is_of_geometry(case: Case, message: str) -> bool:
    """Whether an error on geometry is in torch's words."""
    words = ("Given ", "Calculated padded input size", "Only zero batch inputs", "non-positive ", "negative padding")
    return case["op"] == "dual_conv2d" and message.startswith(tuple(f"prefiqs_ext::dual_conv2d: {w}" for w in words))


def is_refused_by_torch(inputs: dict[str, Any]) -> bool:
    """Whether torch's conv2d refuses the geometry; it is asked without data."""
    window = {name: inputs[name] for name in ("stride", "padding", "dilation", "groups")}
    steps = [*window["stride"], *window["dilation"]]
    if not all(isinstance(step, int) and step >= 1 for step in steps):
        return True  # by most of its kernels, not by all
    shape = inputs["src"].shape
    if len(shape) == 4 and shape[0] > 0 and 0 in shape[2:]:
        return True  # by all kernels but the one that has no data
    # It counts with overflows itself. All steps beyond the padded image are alike.
    most = 2 * max([*inputs["src"].shape, *inputs["weight"].shape]) + 2 * max([*window["padding"], 0]) + 1
    window |= {name: [min(step, most) for step in window[name]] for name in ("stride", "dilation")}
    try:
        src, weight = (torch.empty(inputs[name].shape, device="meta") for name in ("src", "weight"))
        result = torch.nn.functional.conv2d(src, weight, **window)
        if not result.numel() and max(src.numel(), weight.numel()) < _FEW:
            # The kernel without data of torch 2.10 takes a window that is larger than the image; no other does.
            torch.nn.functional.conv2d(torch.empty(src.shape), torch.empty(weight.shape), **window)
    except (RuntimeError, TypeError, IndexError):
        return True
    return False


# --- values and bits --------------------------------------------------------------------------------------------------


def compute_expected(op: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """What the operator means, in float64."""
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    if op == "dual_conv2d" and max(inputs["stride"] + inputs["padding"] + inputs["dilation"]) > 1000:
        wide = gather_taps(wide)
    result = getattr(oracle, f"expected_{op}")(**wide)
    return result if isinstance(result, tuple) else (result,)


def list_meanings(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs as they are and, where instructions that multiply bfloat16 numbers may run, as those take them.

    AMX gets a float32 src rounded. Both kinds of instructions take denormal numbers as zeros, their twins not all.
    """
    isa, algorithm = _C.cpu_isa(), os.environ.get("PREFIQS_CPU_ALGORITHM", "")
    if "weight" not in inputs or inputs["weight"].dtype != torch.bfloat16 or isa in ("scalar", "avx2", "avx512"):
        return [inputs]
    tiles = isa.startswith("amx") and algorithm in ("", "amx", "amx_linear")
    if not tiles and algorithm not in ("", "dot"):
        return [inputs]
    taken = {}
    for name in ("src", "weight"):
        numbers = inputs[name].bfloat16() if tiles else inputs[name]
        taken[name] = numbers.where(numbers.abs() >= _NORMAL, 0) if numbers.is_floating_point() else numbers
        taken[name] = torch.where(numbers.isnan(), numbers, taken[name])
    return [inputs | taken] if tiles and algorithm else [inputs, inputs | taken]


def gather_taps(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same convolution of an image that holds each output's inputs side by side, which takes any window.

    What the taps inside the image add is in the residual.
    """
    src, kernel = inputs["src"], inputs["weight"].shape[2:]
    inside = torch.ones(1, 1, *src.shape[2:], dtype=torch.float64)
    for axis in range(2):
        stride, padding, dilation = (inputs[name][axis] for name in ("stride", "padding", "dilation"))
        size = src.shape[2 + axis]
        count = (size + 2 * padding - dilation * (kernel[axis] - 1) - 1) // stride + 1
        place = torch.arange(count).view(-1, 1) * stride - padding + torch.arange(kernel[axis]) * dilation
        place = place.flatten()
        shape = [-1 if a == 2 + axis else 1 for a in range(4)]
        outside = ((place < 0) | (place >= size)).view(shape)
        src, inside = (
            t.index_select(2 + axis, place.clamp(0, size - 1)).masked_fill(outside, 0) for t in (src, inside)
        )
    window = {"stride": tuple(kernel), "padding": (0, 0), "dilation": (1, 1), "groups": inputs["groups"]}
    shift, residual = inputs.get("tap_shift"), inputs.get("residual")
    if shift is not None:
        rows = torch.cat([torch.nn.functional.conv2d(inside, s.unsqueeze(1), stride=tuple(kernel)) for s in shift])
        images = len(src) // 2 if inputs["paired"] else len(src)
        rows = rows.repeat_interleave(images if len(shift) == 2 else len(src), dim=0)
        residual = rows if residual is None else rows + residual.repeat(len(rows) // len(residual), 1, 1, 1)
    return inputs | window | {"src": src, "tap_shift": None, "residual": residual}


def _compute_errors(
    op: str, inputs: dict[str, Any], wanted: tuple[Tensor, ...], result_dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """How large a result is without cancellation, and by how much it may be off."""
    if op == "embedding_distance":  # sums are in double: what is left is the rounding of the results
        return [(want.abs(), 2 * UNIT * want.abs() + (_TINY, 1e-7)[index == 0]) for index, want in enumerate(wanted)]
    if op == "dense_norm":
        # Runs of 32 squares are added in float32; a square below 2^-126 keeps an absolute error of 2^-150.
        features = inputs["src"].numel() // max(len(inputs["src"]), 1)
        return [(want.square(), 17 * UNIT * want + math.sqrt(features * _TINY)) for want in wanted]
    magnitudes = {k: v.abs() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    slope = magnitudes.pop("slope", None)
    (sums,) = compute_expected(op, magnitudes)
    if slope is not None:
        sums = sums * slope.clamp(min=1).double().view(-1, 1, 1)
    depth = math.prod(inputs["weight"].shape[1:])
    # A chain of K roundings, of partial sums: for positive numbers some sqrt(K) / 3 of their sum in one standard
    # deviation, for others less.
    error = 4 * (4 + math.sqrt(depth)) * UNIT * sums
    if op == "dual_conv2d" and tuple(inputs["weight"].shape[2:]) == (3, 3):
        # Winograd adds the numbers of a whole tile: its error is to be seen beside the largest sum of the image.
        whole = sums.where(sums.isfinite(), 0).amax((1, 2, 3), keepdim=True)
        error = torch.maximum(error, 1e-5 * whole.expand_as(sums))
        sums = torch.maximum(sums, whole)
    # Products of numbers below 1e-19 vanish, each with an error of 2^-150; Winograd multiplies them by some tens. Where
    # instructions for bfloat16 numbers flush denormal sums, the error is 2^-126.
    flushed = inputs["weight"].dtype == torch.bfloat16
    error = error + 100 * depth * (_NORMAL if flushed else _TINY)
    if result_dtype == torch.bfloat16:
        # Products of bfloat16 numbers are exact, so all of the above holds; then the result is rounded to 8 bits, or
        # to a multiple of 2^-133.
        error = error + 2.0**-8 * (wanted[0].abs() + error) + 2.0**-134
    return [(sums, error)]


def _check_values(op: str, inputs: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    """A result has to agree as a whole with one of the things that its call may mean."""
    *others, last = list_meanings(inputs)
    for meaning in others:
        try:
            return _check_meaning(op, meaning, results)
        except AssertionError:
            continue
    _check_meaning(op, last, results)


def _check_meaning(op: str, inputs: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    wanted = compute_expected(op, inputs)
    errors = _compute_errors(op, inputs, wanted, results[0].dtype)
    for result, want, (size, error) in zip(results, wanted, errors, strict=True):
        assert result.shape == want.shape, "the shape is not the oracle's"
        finite, got = result.isfinite(), result.double()
        assert not (finite & ~want.isfinite()).any(), "hidden: a finite result of what is not finite"
        assert not (finite & (want.abs() > 1.001 * _MOST)).any(), "hidden: a finite result that float32 cannot hold"
        # Sums that float32 might not hold may overflow on the way; images that hold what is not finite, anywhere.
        spread = ~size.isfinite()
        if want.dim() == 4:
            spread = spread.flatten(1).any(1).view(-1, 1, 1, 1)
        allowed = spread | ~(size < _MOST / 256)
        assert not (~finite & want.isfinite() & ~allowed).any(), "a result that is not finite"
        off = finite & want.isfinite() & ((got - want).abs() > error)
        worst = ((got - want).abs() / error)[off]
        assert not off.any(), f"off by {float(worst.max()) if worst.numel() else 0:.3g} times the tolerance"


def _check_bits(case: Case, call: Call, results: tuple[Tensor, ...]) -> None:
    """The same by another number of threads, without ``out``, and of one row alone."""
    threads = 3 - case["threads"]
    torch.set_num_threads(threads)
    call.out = None
    for result, again in zip(results, call.run(case["op"]), strict=True):
        assert is_same(result, again), f"other bits by {threads} threads"
    inputs = dict(call.inputs)
    count = len(inputs["pair" if "pair" in inputs else "src"]) // (1 + bool(inputs.get("paired", True)))
    row = case["seed"] % count

    def cut(rows: Tensor) -> Tensor:  # a view, for the order in which norms are added up is that of the memory
        return rows[row::count] if len(rows) > count else rows[row : row + 1]

    inputs |= {name: cut(inputs[name]) for name in ("src", "pair", "residual") if name in inputs}
    alone = getattr(ops, case["op"])(**inputs)
    for result, again in zip(results, alone if isinstance(alone, tuple) else (alone,), strict=True):
        assert is_same(cut(result), again), "a row alone has other bits"


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits, but for those of NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))
