"""Finds which values of a graph carry the batch, by running the graph on one image and on three.

A pair can pass through an operation only if the operation computes every row on its own, along one dimension. That is
mostly dimension 0, but an attention may put another dimension before it. The operation is not looked up in a table; it
is run: if the last of three images does not get the result that it gets alone, the operation mixes rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

from prefiqs_ext.dual.convert.trace import PREFIX, TracedModel
from prefiqs_ext.exceptions import UnsupportedNetworkError

_IMAGES = 3  # beside a run on one
_REQUIREMENT = "a pair needs one dimension that grows with the batch, and every row computed on its own"
# Mean difference divided by mean size. Rounding gives about 1e-6; images that are mixed differ by 1e-1.
_TOLERANCE = 1e-3
# Operations that read the dtype, device or shape of a tensor, but none of its numbers.
_READ_NO_NUMBERS = {"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "type_as", "to"}


@dataclass(frozen=True)
class Value:
    """What a node of the graph computes.

    Attributes:
        batch: Whether the value grows with the number of images. A tensor then holds one block of rows per image.
        kind: "tensor", "number", "size" (a tuple of numbers, one of which grows) or "other".
        shape: Of a tensor, for one image.
        dtype: Of a tensor.
        constant: The value itself, if it is the same for every input.
        dim: The dimension of a tensor that grows, or the index of the number that grows in a size.
    """

    batch: bool
    kind: Literal["tensor", "number", "size", "other"]
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    constant: object = None
    dim: int = 0


def make_images(example: Tensor, count: int) -> Tensor:
    """Make `count` images from the first row of an example: seeded variations of it, then the row itself."""
    first = example[:1]
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(count - 1, *first.shape[1:], generator=generator).to(first.device)
    if first.dtype == torch.uint8:
        levels = (first.float() + 64 * noise).round().clamp(0, 255)
        return torch.cat([levels.to(torch.uint8), first])
    spread = first.float().std(correction=0)
    scale = spread if spread > 0 else torch.ones_like(spread)
    return torch.cat([(first + scale * noise).to(first.dtype), first])


def describe_node(node: fx.Node, root: nn.Module) -> str:
    """Name a node for an error, as the model does: its module, or its operation and the module that calls it."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return f"{str(node.target).removeprefix(PREFIX)!r} ({type(module).__name__})"
    name = name_operation(node)
    if node.op == "call_method" or node.target is getattr:
        name = f"Tensor.{node.args[1] if node.target is getattr else name}"
    callers = [str(path).removeprefix(PREFIX) for path in node.meta.get("nn_module_stack", {}) if PREFIX in str(path)]
    return f"{name!r} in {callers[-1]!r}" if callers else f"{name!r}"


def name_operation(node: fx.Node) -> str:
    """Return the bare name of what a node calls: "add" for torch.add, operator.add, Tensor.add and aten.add.Tensor."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


@torch.no_grad()
def observe_values(traced: TracedModel, example: Tensor) -> dict[fx.Node, Value]:
    """Find out what every node but the output computes.

    Where `reshape` or `expand` has a constant for the batch size, the graph is changed to read the size instead.

    Args:
        traced: The model's graph.
        example: One or more inputs; only the first row is used.

    Raises:
        UnsupportedNetworkError: An operation spreads the batch over several dimensions, loses it or mixes its rows.
    """
    one, three = (_Stepper(traced, make_images(example, count)) for count in (1, _IMAGES))
    values: dict[fx.Node, Value] = {}
    for node in list(traced.graph.nodes):
        if node.op == "output":
            break
        what = describe_node(node, traced.root)
        alone = one.step(node, f"dualize: the model fails on one row of the example, at {what}")
        size = _free_constant_batch(node, alone, values)
        if size is not None:
            three.step(size, "dualize")
            values[size] = Value(True, "number")
        among = three.step(
            node, f"dualize: {what} works for a batch of 1 but not of {_IMAGES} (a constant batch size?)"
        )
        sources = [values[source] for source in node.all_input_nodes]
        reads_rows = any(source.batch and source.kind == "tensor" for source in sources)
        value = _compare_results(alone, among, what, reads_rows and name_operation(node) not in _READ_NO_NUMBERS)
        if any(source.batch or source.constant is None for source in sources):
            value = replace(value, constant=None)  # read off the input, such as its height
        values[node] = value
    return values


class _Stepper(fx.Interpreter):
    """An interpreter that runs one node at a time and forgets values that no later node reads."""

    def __init__(self, traced: TracedModel, x: Tensor) -> None:
        super().__init__(traced.root, graph=traced.graph)
        self.args_iter = iter((x,))

    def step(self, node: fx.Node, complaint: str) -> object:
        try:
            self.env[node] = result = self.run_node(node)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedNetworkError(f"{complaint}: {reason}") from error
        for last_used in self.user_to_last_uses.get(node, ()):
            del self.env[last_used]
        return result


def _free_constant_batch(node: fx.Node, result: object, values: dict[fx.Node, Value]) -> fx.Node | None:
    """Replace a batch size of 1 that was exported as a constant: reshape(x, (1, 512)) becomes reshape(x, (size, 512)).

    Returns:
        The new node that reads the size of x in dimension 0, or None if there is no such constant.
    """
    source, *sizes = node.args or (None,)
    if name_operation(node) not in ("reshape", "expand") or not isinstance(source, fx.Node) or not sizes:
        return None
    as_tuple = isinstance(sizes[0], (tuple, list))
    sizes = list(sizes[0]) if as_tuple else sizes  # type: ignore[arg-type]
    one_row = isinstance(result, Tensor) and result.shape[:1] == values[source].shape[:1] == (1,)
    if not values[source].batch or values[source].dim != 0 or not one_row or sizes[:1] != [1]:
        return None
    with node.graph.inserting_before(node):
        size = node.graph.call_method("size", (source, 0))
    sizes[0] = size
    node.args = (source, tuple(sizes)) if as_tuple else (source, *sizes)
    return size


def _compare_results(one: object, three: object, what: str, reads_rows: bool) -> Value:
    if isinstance(one, Tensor) and isinstance(three, Tensor):
        return _compare_tensors(one, three, what, reads_rows)
    if isinstance(one, dict) and isinstance(three, dict):
        one, three = tuple(one.values()), tuple(three.values())
    if isinstance(one, (tuple, list)) and isinstance(three, (tuple, list)):
        if len(one) != len(three):
            raise UnsupportedNetworkError(
                f"dualize: {what} takes the batch apart into {len(three)} values: {_REQUIREMENT}"
            )
        elements = [_compare_results(a, b, what, reads_rows) for a, b in zip(one, three, strict=True)]
        if not any(element.batch for element in elements):
            return Value(False, "other", constant=one)
        grown = [index for index, element in enumerate(elements) if element.batch]
        is_size = len(grown) == 1 and elements[grown[0]].kind == "number"
        return Value(True, "size", dim=grown[0]) if is_size else Value(True, "other")
    if isinstance(one, (int, float)) and isinstance(three, (int, float)) and one != three:
        if three != _IMAGES * one:
            raise UnsupportedNetworkError(
                f"dualize: {what} gives {one} for a batch of 1, {three} for {_IMAGES}: expected a multiple"
            )
        return Value(True, "number")
    return Value(False, "other", constant=one)


def _compare_tensors(one: Tensor, three: Tensor, what: str, reads_rows: bool) -> Value:
    shape = tuple(one.shape)
    if three.shape == one.shape:
        if reads_rows:
            raise UnsupportedNetworkError(
                f"dualize: {what} mixes the rows of the batch: its result {list(shape)} has none: {_REQUIREMENT}"
            )
        return Value(False, "tensor", shape, one.dtype, one)
    grown = [dim for dim, (few, many) in enumerate(zip(shape, three.shape, strict=False)) if few != many]
    if len(shape) != three.dim() or len(grown) != 1 or three.shape[grown[0]] != _IMAGES * shape[grown[0]]:
        raise UnsupportedNetworkError(
            f"dualize: {what} spreads the batch: its result is {list(shape)} for a batch of 1, {list(three.shape)} for "
            f"{_IMAGES}: {_REQUIREMENT}"
        )
    dim = grown[0]
    difference = _measure_difference(one, three.narrow(dim, three.shape[dim] - shape[dim], shape[dim]))
    if difference > _TOLERANCE:
        raise UnsupportedNetworkError(
            f"dualize: {what} mixes the rows of the batch: a row alone and the same row among {_IMAGES} differ by "
            f"{difference:.1g} of their size: {_REQUIREMENT}"
        )
    return Value(True, "tensor", shape, one.dtype, dim=dim)


def _measure_difference(a: Tensor, b: Tensor) -> float:
    if not a.is_floating_point():
        return float((a != b).double().mean()) if a.numel() else 0.0
    a, b = (torch.nan_to_num(t.double()) for t in (a, b))
    size = float(a.abs().mean()) if a.numel() else 0.0
    return float((a - b).abs().mean()) / size if size > 0 else float(b.abs().sum() > 0)
