"""One node of an ONNX file, as the functions of onnx_operators.py see it, and the state of the import.

Each value in the file is either a constant or an activation. A constant is an initialiser (a stored weight), or follows
from initialisers alone. An activation depends on the network's input, and its first dimension is the batch.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx, nn

from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.utils.budget import Budget
from prefiqs_ext.utils.text import format_untrusted

_LONGEST = 200  # characters of an attribute's name
_MOST_ATOMS = 20  # modules in one another

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]
Pair = tuple[int, int]


class State:
    """The state of an import: the torch graph so far, and the meaning of the names in the ONNX file.

    Args:
        opset: The opset of the file.
        constants: The initialisers by name. Constants that follow from them are added during the import.
        shapes: The shape of every value, from :func:`~prefiqs_ext.models.onnx_shapes.infer_shapes`.
        budget: What the file may still cost.

    Attributes:
        graph: The torch graph so far.
        activations: The nodes of the torch graph by the name of the ONNX value that they compute.
        owned: The modules and buffers of the torch graph by name.
    """

    def __init__(self, opset: int, constants: dict[str, Array], shapes: dict[str, Shape], budget: Budget) -> None:
        self.opset = opset
        self.budget = budget
        self.constants = constants
        self.shapes = shapes
        self.graph = fx.Graph()
        self.activations: dict[str, fx.Node] = {}
        self.owned: dict[str, nn.Module | Tensor] = {}
        self._parents: set[str] = set()
        self._repeats: dict[str, int] = {}

    def keep(self, name: str, item: nn.Module | Tensor) -> str:
        """Keep a module or buffer under a name, or under a similar name if it is taken. Return that name."""
        if self._is_taken(name):
            base = name = name.replace(".", "_")
            while self._is_taken(name):
                self._repeats[base] = self._repeats.get(base, 0) + 1
                name = f"{base}_{self._repeats[base]}"
        self.owned[name] = item
        self._parents.update(_list_parents(name))
        return name

    def _is_taken(self, name: str) -> bool:
        # "a" and "a.b" must not both be modules of the file: replacing the outer one would lose the inner one.
        return (
            name in self.owned or name in self._parents or any(parent in self.owned for parent in _list_parents(name))
        )


def _list_parents(name: str) -> list[str]:
    """Return the names of all outer modules: "a" and "a.b" for "a.b.c"."""
    atoms = name.split(".")
    return [".".join(atoms[:end]) for end in range(1, len(atoms))]


class Window(NamedTuple):
    """The sliding window of a convolution or pooling. Each field is (height, width).

    Attributes:
        kernel: The size of the window.
        stride: The step of the window.
        dilation: The distance between two elements of the window.
        before: The padding above and on the left.
        after: The padding below and on the right.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair


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
    """

    def __init__(self, state: State, node: onnx.NodeProto) -> None:
        self._state = state
        self.op, self.opset = node.op_type, state.opset
        self.attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.inputs: list[str] = list(node.input)
        self.outputs: list[str] = list(node.output)
        self.name = node.name or self.outputs[0]

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
        return self.inputs[index] in self._state.constants

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
        if name not in self._state.shapes:
            self.refuse(f"the rank of '{format_untrusted(name)}' is unknown")
        return self._state.shapes[name]

    def get_constant(self, index: int) -> Array:
        """Return the values of a constant input. Refuse an activation."""
        value = self._state.constants.get(self.inputs[index])
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
            return [int(value) for value in self.get_constant(index).reshape(-1)]
        if default is None:
            self.refuse(f"expected {name}")
        return list(default)

    def resolve_axis(self, value: int, rank: int) -> int:
        """Return an axis as a positive number: -1 of rank 4 is 3. Refuse axis 0, which is the batch."""
        axis = value + rank if value < 0 else value
        self.expect(0 < axis < rank, f"an axis other than the batch, got axis {value} of rank {rank}")
        return axis

    def get_window(self, kernel: Sequence[int] | None = None) -> Window:
        """Return the sliding window that the attributes describe. Refuse an input that is not ``[N, C, H, W]``.

        Args:
            kernel: The size of the window if the weights tell it; the attribute must then agree.
        """
        self.expect(self.get_rank() == 4, f"an input of rank 4, got rank {self.get_rank()}")
        given = self._get_pair("kernel_shape", kernel)
        self.expect(kernel is None or given == tuple(kernel), f"kernel_shape of the weights, got {list(given)}")
        stride, dilation = self._get_pair("strides", (1, 1)), self._get_pair("dilations", (1, 1))
        return Window(given, stride, dilation, *self._compute_padding(given, stride, dilation))

    def _get_pair(self, name: str, default: Sequence[int] | None) -> Pair:
        values = self.get_integers(name, default=default)
        self.expect(len(values) == 2 and min(values) > 0, f"two positive numbers as {name}, got {values}")
        return values[0], values[1]

    def _compute_padding(self, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
        """Return the padding before and after, from the attribute `pads` or `auto_pad`."""
        mode = self.attributes.get("auto_pad", b"NOTSET").decode()
        if mode == "NOTSET":
            pads = self.get_integers("pads", default=(0, 0, 0, 0))
            self.expect(len(pads) == 4 and min(pads) >= 0, f"four pads of 0 or more, got {pads}")
            return (pads[0], pads[1]), (pads[2], pads[3])
        if mode == "VALID":
            return (0, 0), (0, 0)
        self.expect(mode in ("SAME_UPPER", "SAME_LOWER"), f"auto_pad of the ONNX standard, got {mode!r}")
        less, more = [], []
        for size, k, s, d in zip(self.get_shape()[2:], kernel, stride, dilation, strict=True):
            if size is None:
                self.refuse(f"auto_pad {mode} needs a fixed input height and width")
            total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            less.append(total // 2)
            more.append(total - total // 2)
        before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
        return (before[0], before[1]), (after[0], after[1])

    def pad(self, before: Pair, after: Pair, value: float) -> fx.Node:
        """Add a module to the torch graph that pads the height and width of the first input with a value."""
        sides = (before[1], after[1], before[0], after[0])
        return self.call_module(nn.ConstantPad2d(sides, value) if value else nn.ZeroPad2d(sides), suffix="_pad")

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

    def call_method(self, name: str, *args: Any) -> fx.Node:
        """Add a call of a method of the first input to the torch graph, as torch.fx itself traces a method."""
        return self._state.graph.call_method(name, (self.get_activation(), *args))

    def add_buffer(self, index: int, value: Tensor) -> fx.Node:
        """Add a tensor to the torch graph as a buffer, under the name of this input."""
        return self._state.graph.get_attr(self._state.keep(make_identifier(self.inputs[index]) or "constant", value))


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
