"""One node of an ONNX file, as the functions that translate operators see it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx, nn

from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.onnx_import.state import Array, Shape, State
from prefiqs_ext.utils.budget import Budget
from prefiqs_ext.utils.text import format_untrusted

_LONGEST = 200  # characters of an attribute's name
_MOST_ATOMS = 20  # modules in one another


class Node:
    """One node of an ONNX file.

    The methods read its inputs and attributes, add calls to the torch graph, and refuse what cannot be imported.

    Args:
        state: The state of the import.
        node: The node in the file.

    Attributes:
        op: The name of the operator, such as "Conv".
        opset: The opset of the file.
        attributes: The values of the attributes by name.
        inputs: The names of the inputs; "" for an optional input that is left out.
        outputs: The names of the outputs.
        name: The name of the node or, if it has none, of its first output.
        batch: The batch size that shapes are inferred for.
        batch_axis: The batch axis of the outputs. It is that of the first activation, unless a translation sets it.
    """

    def __init__(self, state: State, node: onnx.NodeProto) -> None:
        self._state = state
        self.op, self.opset = node.op_type, state.opset
        self.attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.inputs: list[str] = list(node.input)
        self.outputs: list[str] = list(node.output)
        self.name = node.name or self.outputs[0]
        self.batch = state.batch
        axes = (state.batch_axes[name] for name in self.inputs if name in state.batch_axes)
        self.batch_axis = next(axes, 0)

    def refuse(self, why: str) -> NoReturn:
        """Raise an UnsupportedNetworkError that names the node and says why it cannot be imported."""
        op, name = format_untrusted(self.op), format_untrusted(self.name)
        raise UnsupportedNetworkError(f"{op} node '{name}': {why}")

    def expect(self, condition: bool, what: str) -> None:
        """Refuse the node unless the condition holds; `what` completes "expected ..."."""
        if not condition:
            self.refuse(f"expected {what}")

    def _quote(self, index: int) -> str:
        return f"'{format_untrusted(self.inputs[index])}'"

    def has(self, index: int) -> bool:
        """Return whether the node has this optional input."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def is_constant(self, index: int) -> bool:
        """Return whether the input is a constant."""
        return self._state.find_constant(self.inputs[index]) is not None

    def get_activation(self, index: int = 0) -> fx.Node:
        """Return the node of the torch graph that computes the input. Refuse a constant."""
        node = self._state.activations.get(self.inputs[index])
        if node is None:
            self.refuse(f"expected input {index} to depend on the network's input; {self._quote(index)} does not")
        return node

    def get_shape(self, index: int = 0) -> Shape:
        """Return the shape of the input, with None for a size that the file leaves open."""
        return self._look_up_shape(self.inputs[index])

    def get_output_shape(self) -> Shape:
        """Return the shape of the first output, with None for a size that the file leaves open."""
        return self._look_up_shape(self.outputs[0])

    def get_rank(self, index: int = 0) -> int:
        """Return the number of dimensions of the input."""
        return len(self.get_shape(index))

    def expect_size(self, axis: int, size: int) -> None:
        """Refuse the node if the file gives its first input another size along the axis."""
        self.expect(self.get_shape()[axis] in (None, size), f"{size} along axis {axis}, got {self.get_shape()[axis]}")

    def _look_up_shape(self, name: str) -> Shape:
        if name not in self._state.inferred.shapes:
            self.refuse(f"the rank of '{format_untrusted(name)}' is unknown")
        return self._state.inferred.shapes[name]

    def get_fixed_shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the shape of the input. Refuse a size that the file leaves open."""
        shape = self.get_shape(index)
        sizes = tuple(size for size in shape if size is not None)
        self.expect(len(sizes) == len(shape), f"a shape fixed by the file, got {format_shape(shape)}")
        return sizes

    def get_fixed_size(self, axis: int) -> int:
        """Return the size of the first input along an axis. Refuse one that the file leaves open."""
        size = self.get_shape()[axis]
        if size is None:
            self.refuse(f"expected a size fixed by the file along axis {axis}")
        return size

    def get_batch_axis(self, index: int) -> int:
        """Return the batch axis of an activation."""
        return self._state.batch_axes[self.inputs[index]]

    def get_constant(self, index: int) -> Array:
        """Return the values of a constant input. Refuse an activation."""
        value = self._state.find_constant(self.inputs[index])
        if value is None:
            self.refuse(f"expected a constant as input {index}; {self._quote(index)} is none")
        return value

    def get_tensor(self, index: int) -> Tensor:
        """Return a copy of a constant input, which must be float32."""
        value = self.get_constant(index)
        self.expect(value.dtype == np.float32, f"float32 as input {index}, not {value.dtype}")
        self._state.budget.charge_bytes(value.nbytes)
        return torch.from_numpy(np.array(value, order="C"))

    def get_vector(self, index: int, length: int) -> Tensor:
        """Return a copy of a constant input, which must be float32 of shape ``[length]``."""
        value = self.get_tensor(index)
        self.expect(value.shape == (length,), f"{length} numbers as input {index}, not shape {list(value.shape)}")
        return value

    def get_number(self, index: int) -> float:
        """Return the number that is a constant input, which must be float32 with one element."""
        value = self.get_tensor(index)
        self.expect(value.numel() == 1, f"one number as input {index}, not shape {list(value.shape)}")
        return float(value)

    def get_integers(self, name: str, index: int | None = None, default: Sequence[int] | None = None) -> list[int]:
        """Return integers from an attribute or, as in later opsets, from a constant input.

        Args:
            name: The name of the attribute.
            index: The index of the input; None if there is no such input in any opset.
            default: The integers if neither is given; None if one of them must be.
        """
        if name in self.attributes:
            return list(self.attributes[name])
        if index is not None and self.has(index):
            return [int(value) for value in self.get_array_of_integers(index).reshape(-1)]
        if default is None:
            self.refuse(f"expected {name}")
        return list(default)

    def get_numbers(self, name: str, index: int) -> list[float]:
        """Return numbers from an attribute or, as in later opsets, from a constant input; an empty list for neither."""
        if name in self.attributes:
            return list(self.attributes[name])
        if not self.has(index):
            return []
        return [float(value) for value in self.get_constant(index).reshape(-1)]

    def get_array_of_integers(self, index: int) -> Array:
        """Return the integers that are a constant input."""
        values = self.get_constant(index)
        self.expect(np.issubdtype(values.dtype, np.integer), f"integers as input {index}, got {values.dtype}")
        return values.astype(np.int64)

    def get_literal_shape(self) -> list[int] | None:
        """Return the second input if the file holds its numbers, and None if it computes them."""
        held = self.inputs[1] in self._state.inferred.literals
        return self.get_integers("shape", 1) if held else None

    @property
    def has_open_batch(self) -> bool:
        """Whether the file leaves the batch size open."""
        return self._state.declared_batch is None

    def resolve_axis(self, value: int) -> int:
        """Return an axis of the first activation as a positive number: -1 of rank 4 is 3. Refuse the batch axis."""
        rank = self.get_rank(self._list_activations()[0])
        axis = value + rank if value < 0 else value
        self.expect(
            0 <= axis < rank and axis != self.batch_axis,
            f"an axis other than the batch, got axis {value} of rank {rank}",
        )
        return axis

    def charge_bytes(self, count: int) -> None:
        """Charge the file for memory that is about to be taken for this node."""
        self._state.budget.charge_bytes(count)

    def expect_images(self) -> None:
        """Refuse the node unless its first input is ``[N, C, H, W]``."""
        self.expect(self.get_rank() == 4, f"an input of rank 4, got rank {self.get_rank()}")
        self.expect_batch_first()

    def expect_batch_first(self) -> None:
        """Refuse the node unless the batch axis of its first input is the first one."""
        self.expect(self.batch_axis == 0, f"the batch as the first axis, it is axis {self.batch_axis}")

    def call_module(
        self, module: nn.Module, x: fx.Node | None = None, *, weight: int | None = None, suffix: str = ""
    ) -> fx.Node:
        """Add a module, and a call of it, to the torch graph.

        Args:
            module: The module.
            x: What to call it on; None means the first input.
            weight: The index of the input that is the weight of the module. If that has the name "fc.weight" in the
                file, the module gets the name "fc". Otherwise it gets the name of the node.
            suffix: Text to append to the name.
        """
        name = ""
        if weight is not None and self.inputs[weight].endswith(".weight"):
            atoms = self.inputs[weight].split(".")[:-1]
            if len(atoms) <= _MOST_ATOMS:
                name = ".".join(filter(None, map(make_identifier, atoms)))
        name = (name or make_identifier(self.name) or self.op.lower()) + suffix
        return self._state.graph.call_module(
            self._state.keep(name, module), (self.get_activation() if x is None else x,)
        )

    def call_function(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a function to the torch graph."""
        return self._state.graph.call_function(function, args, kwargs)

    def call_method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        """Add a call of a method to the torch graph, as torch.fx itself traces a method."""
        return self._state.graph.call_method(name, (x, *args))

    def add_buffer(self, name: str, value: Tensor) -> fx.Node:
        """Add a tensor to the torch graph as a buffer, under a name like this one."""
        return self._state.graph.get_attr(self._state.keep(make_identifier(name) or "constant", value))

    def add_constant(self, index: int) -> fx.Node:
        """Add a constant input to the torch graph as a buffer, for a calculation that aligns its shape at the right."""
        return self.add_buffer(self.inputs[index], self.get_rowless_tensor(index))

    def get_rowless_tensor(self, index: int) -> Tensor:
        """Return a constant input that is the same for every image: with 1 along the batch axis, or without it.

        Such a constant is `cls_token.expand(batch, -1, -1)`.
        """
        value, axis = self.get_tensor(index), self._find_aligned_batch_axis(index)
        if axis is None or value.shape[axis] == 1:
            return value
        first = value.narrow(axis, 0, 1)
        same = value.shape[axis] == self.batch and torch.equal(value, first.expand(value.shape))
        self.expect(same, f"a constant without a batch, got shape {list(value.shape)}")
        return first.clone()

    def _find_aligned_batch_axis(self, index: int) -> int | None:
        """Return the axis of a constant that meets the batch axis, with shapes aligned at the right."""
        first = self._list_activations()[0]
        axis = self.get_batch_axis(first) - self.get_rank(first) + self.get_constant(index).ndim
        return axis if axis >= 0 else None

    def _list_activations(self) -> list[int]:
        """Return the indices of the inputs that are activations. Refuse a node that has none."""
        found = [index for index, name in enumerate(self.inputs) if name in self._state.activations]
        self.expect(bool(found), "an input that is not constant")
        return found

    def get_first_activation(self) -> fx.Node:
        """Return the node of the torch graph that computes the first input that is an activation."""
        return self.get_activation(self._list_activations()[0])

    def get_activation_rank(self) -> int:
        """Return the largest rank among the activations."""
        return max(self.get_rank(index) for index in self._list_activations())

    def align_batch(self) -> None:
        """Set the batch axis of a calculation that aligns shapes at the right, as NumPy does.

        Refuse activations whose batch axes would meet other axes, or that hold another number of rows for an image.
        """
        used = self._list_activations()
        places = {self.get_batch_axis(index) - self.get_rank(index) for index in used}
        rows = {self.get_shape(index)[self.get_batch_axis(index)] for index in used}
        shapes = " and ".join(format_shape(self.get_shape(index)) for index in used)
        self.expect(len(places) == len(rows) == 1, f"inputs whose batches meet, got shapes {shapes}")
        self.batch_axis = self.get_activation_rank() + places.pop()


def format_shape(shape: Shape) -> str:
    """Return the text of a shape, such as "[1, ?, 7]" if the second size is open."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


_EVALUATION = 50  # parts that it costs to evaluate a node

_BARE = fx.GraphModule(nn.Module(), fx.Graph())  # nothing from a file may replace an attribute that this has


def make_identifier(name: str) -> str:
    """Return a name that a module's attribute can have: "/layer1/conv" becomes "layer1_conv".

    The result is "" if the name has no letters or digits. A long name loses its beginning.
    """
    name = re.sub(r"\W+", "_", name[-_LONGEST:], flags=re.ASCII).strip("_")
    # In the code that torch.fx writes, each value has a name like that of its module; `self` is taken there.
    return name + "_" if keyword.iskeyword(name) or name == "self" or hasattr(_BARE, name) else name


def evaluate(node: onnx.NodeProto, inputs: dict[str, Array], opset: int, budget: Budget) -> Array:
    """Compute the first output of a node with ONNX's reference implementation.

    Args:
        node: The node.
        inputs: The values of all its inputs by name.
        opset: The opset of the file.
        budget: What the file may still cost.
    """
    budget.charge_parts(_EVALUATION)
    values = [onnx.ValueInfoProto(name=name) for name in (*inputs, node.output[0])]
    graph = onnx.helper.make_graph([node], "node", values[:-1], values[-1:])
    # The evaluator respects an opset only if it comes with a model.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    results: Any = ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(results[0])
