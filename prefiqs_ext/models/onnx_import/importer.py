"""Import an ONNX file as a torch.fx.GraphModule of ordinary modules, with the names that they have in the file.

The module computes what the file says, for any batch size. To import a file, the shape of every value is inferred, for
the batch size that the file declares (or 1 if it leaves it open). The nodes are then translated one by one;
registry.py has the table. Reshape and others take their shape from this inference, and leave the batch size free. So
nodes that only compute a shape are not needed and are left out. Weights in float16 are computed with in float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import onnx
from torch import fx, nn

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models.file_kinds import refuse_other_kinds
from prefiqs_ext.models.onnx_import import elementwise, layers, resampling, reshaping  # noqa: F401, they fill OPERATORS
from prefiqs_ext.models.onnx_import.cost import check_cost
from prefiqs_ext.models.onnx_import.fields import charge_message
from prefiqs_ext.models.onnx_import.half import widen_half
from prefiqs_ext.models.onnx_import.node import Node, evaluate, format_shape
from prefiqs_ext.models.onnx_import.registry import OPERATORS
from prefiqs_ext.models.onnx_import.shapes import infer_shapes
from prefiqs_ext.models.onnx_import.state import Array, State
from prefiqs_ext.models.state_dict import QUANTISED
from prefiqs_ext.utils.budget import MAX_NODES, MAX_ONNX_BYTES, Budget
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.text import describe_error, format_path, format_untrusted
from prefiqs_ext.utils.torch_defaults import torch_defaults

_OLDEST_OPSET = 7  # the first one with NumPy's rules of broadcasting
_MAX_MESSAGE = 400  # characters of an error
_USUAL_SIDE = 112  # of images, in pixels, where the file leaves it open
_SHOWN = 4  # names that an error lists

_IN_FLOAT32 = ": export the network in float32"
_DATA_TYPES = frozenset(
    onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT32", "INT64", "BOOL")
)

# These operators are computed at once if all their inputs are constants.
_OF_CONSTANTS = """
    Add Cast Concat Constant ConstantOfShape Div Exp Expand Gather Identity Log Mul Neg Pow Reciprocal Reshape Slice
    Sqrt Squeeze Sub Transpose Unsqueeze
"""
_CONSTANT_OPERATORS = frozenset(_OF_CONSTANTS.split())
_QUANTISED_OPERATORS = ("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "ConvInteger", "MatMulInteger")

_BYTES_OF_A_NUMBER = 8  # at most

_DECLARED = "prefiqs_ext: declared input"


class ImportedNetwork(fx.GraphModule):
    """A network from an ONNX file, with the input shape that the file declares."""

    @property
    def declared_input(self) -> tuple[int | None, ...]:
        """The shape of the input, ``[N, C, H, W]`` for images, with None for a size that the file leaves open."""
        declared: tuple[int | None, ...] = self.meta[_DECLARED]  # a copy of a graph module keeps `meta`
        return declared

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments = super().__reduce__()
        return _restore, (make, arguments, self.declared_input)


def _restore(make: Callable[..., fx.GraphModule], arguments: Any, declared: tuple[int | None, ...]) -> ImportedNetwork:
    """Build a pickled network again. torch.fx itself would give a plain GraphModule."""
    plain = make(*arguments)
    module = ImportedNetwork(plain, plain.graph, class_name="Network")
    module.training = plain.training
    module.meta[_DECLARED] = declared
    return module


def import_onnx(path: str | os.PathLike[str]) -> ImportedNetwork:
    """Import the network of an ONNX file as a module, in eval mode on the CPU.

    Args:
        path: The file. Its network must be in float32 or float16, with one input and opset 7 or later, and its weights
            must be in the same file.

    Returns:
        A module that maps a float32 tensor ``[N, ...]`` to the output of the network, ``[N, d]`` if the file gives
        ``[N, d, 1, 1]``. If the file has several outputs, the result is a dictionary by their names. N may have any
        size, even if the file fixes it. If the file takes images ``[N, H, W, 3]``, the module takes ``[N, 3, H, W]``.
        Layers have the names of their weights: a convolution with the weight `layer1.0.conv1.weight` is
        `layer1.0.conv1`. Other layers have the names of their nodes.

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: The file cannot be read.
        FileFormatError: The file is damaged or would do harm.
        UnsupportedNetworkError: The network has an operator, a type or a shape that cannot be reproduced exactly.
    """
    path = Path(path)
    with open_regular(path, "name an ONNX file", most=MAX_ONNX_BYTES) as file:
        return read_onnx(file, path)


@torch_defaults()
def read_onnx(file: IO[bytes], path: Path) -> ImportedNetwork:
    """Import the network of an open file, as :func:`import_onnx` does.

    Args:
        file: The file.
        path: Its path, for errors.
    """
    name = format_path(str(path))
    try:
        with explain_read_errors(name):
            refuse_other_kinds(file, "ONNX")
            file.seek(0)
            data = file.read()
        budget = Budget(len(data))
        return _build_network(_parse_model(data, budget), budget)
    except FileAccessError:
        raise
    except Exception as error:  # damaged bytes can make onnx and torch raise anything
        kind = UnsupportedNetworkError if isinstance(error, UnsupportedNetworkError) else FileFormatError
        raise kind(f"cannot import {name}: {format_untrusted(describe_error(error), _MAX_MESSAGE)}") from error


def _parse_model(data: bytes, budget: Budget) -> onnx.ModelProto:
    """Parse a model and check it, as far as this is possible without looking at the single nodes."""
    model = onnx.ModelProto()
    try:
        charge_message(data, model.DESCRIPTOR, budget)
        model.ParseFromString(data)
    except FileFormatError:
        raise
    except Exception as error:  # protobuf's error has no public class
        reason = format_untrusted(error)
        raise FileFormatError(
            f"expected an ONNX file; this one is truncated, damaged or something else ({reason})"
        ) from error
    if not model.graph.node:
        raise FileFormatError("expected an ONNX model with a graph, found none (an empty file, or not ONNX)")
    if len(model.graph.node) > MAX_NODES:
        raise FileFormatError(f"expected a graph of at most {MAX_NODES} nodes, it has {len(model.graph.node)}")
    if model.functions:
        name = format_untrusted(model.functions[0].name)
        raise UnsupportedNetworkError(f"expected plain operators, found the model-local function '{name}'")
    for value in model.graph.input:
        if not value.HasField("type"):
            name = format_untrusted(value.name)
            raise FileFormatError(f"expected a float32 input [N, ...]; the file does not say what '{name}' is")
    for value in model.graph.output:
        if not value.HasField("type"):  # some tools leave it out; the inference tells whether it is float32
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            value.type.tensor_type.shape.SetInParent()
            data = model.SerializeToString()
    _refuse_quantised(model.graph)
    # This comes before the checker, which would open other files if the model says that its weights are there.
    _refuse_hidden_data(model.graph)
    onnx.checker.check_model(data)
    if _get_opset(model) < _OLDEST_OPSET:
        raise UnsupportedNetworkError(f"expected opset {_OLDEST_OPSET} or later, the file has {_get_opset(model)}")
    widen_half(model)
    return model


def _refuse_quantised(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type.startswith(_QUANTISED_OPERATORS):
            op = format_untrusted(node.op_type)
            raise UnsupportedNetworkError(f"expected a network in float32, found {op}, {QUANTISED}")


def _refuse_hidden_data(graph: onnx.GraphProto) -> None:
    """Refuse tensors in other files or of unsupported types, sparse tensors, and graphs inside of nodes."""
    tensors = list(graph.initializer)
    for node in graph.node:
        what = f"{format_untrusted(node.op_type)} node '{format_untrusted(node.name)}'"
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
            if attribute.HasField("g") or attribute.graphs:
                raise UnsupportedNetworkError(f"{what}: control flow is not supported")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise UnsupportedNetworkError(f"{what}: sparse tensors are not supported")
    if graph.sparse_initializer:
        raise UnsupportedNetworkError("sparse initialisers are not supported")
    for tensor in tensors:
        name = format_untrusted(tensor.name)
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise FileFormatError(f"the data of '{name}' are in another file; save the model as one file")
        if tensor.data_type not in _DATA_TYPES:
            kind = _get_type_name(tensor.data_type)
            remedy = _IN_FLOAT32 if kind == "BFLOAT16" else f", {QUANTISED}" if "8" in kind else ""
            raise UnsupportedNetworkError(f"the data of '{name}' have the unsupported ONNX type {kind}{remedy}")


def _get_type_name(data_type: int) -> str:
    """Return ONNX's name of a data type, such as "FLOAT16", or its number if it has no name."""
    known: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return known.get(data_type, str(data_type))


def _get_opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in _ONNX_DOMAINS), default=0)


_ONNX_DOMAINS = ("", "ai.onnx")


def _build_network(model: onnx.ModelProto, budget: Budget) -> ImportedNetwork:
    """Translate a checked model."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = _find_input([value for value in model.graph.input if value.name not in constants])
    opset = _get_opset(model)
    declared = tuple(size.dim_value or None for size in source.type.tensor_type.shape.dim)
    inferred = infer_shapes(model, source.name, opset, budget)
    state = State(opset, constants, inferred, declared[0], budget)
    placeholder = state.graph.placeholder("images")
    if len(declared) == 4 and declared[3] == 3 and declared[1] != 3:
        batch, height, width, channels = declared
        declared = batch, channels, height, width
        placeholder = state.graph.call_method("permute", (placeholder, 0, 2, 3, 1))
    state.activations[source.name] = placeholder
    state.batch_axes[source.name] = 0

    results = [value.name for value in model.graph.output]
    needed = _select_needed(model.graph.node, results)
    if None in declared[1:]:
        inferred = infer_shapes(model, source.name, opset, budget, side=_USUAL_SIDE)
    check_cost(needed, inferred.shapes, constants, state.batch)
    for proto in needed:
        _add_node(state, proto)
    outputs = {name: _get_output(state, name) for name in results}
    state.graph.output(outputs if len(outputs) > 1 else outputs[results[0]])
    module = ImportedNetwork(state.owned, state.graph, class_name="Network").eval()
    module.meta[_DECLARED] = declared
    return module


def _get_output(state: State, name: str) -> fx.Node:
    """Return an output of the torch graph; ``[N, d]`` for ``[N, d, 1, 1]``. Refuse one without a row for each image."""
    if name not in state.activations:
        raise UnsupportedNetworkError(
            f"expected an output that depends on the input; '{format_untrusted(name)}' does not"
        )
    shape = state.inferred.shapes.get(name, (state.batch,))
    if state.batch_axes[name] != 0 or shape[:1] != (state.batch,):
        raise UnsupportedNetworkError(
            f"expected an output with a row for each image; '{format_untrusted(name)}' is {format_shape(shape)} for a "
            f"batch of {state.batch}"
        )
    result = state.activations[name]
    if len(shape) == 4 and shape[2:] == (1, 1):
        return state.graph.call_module(state.keep("embedding", nn.Flatten(1)), (result,))
    return result


def _find_input(inputs: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """Return the one input. Refuse a network with several, or with one that is not float32 of known rank."""
    if len(inputs) != 1:
        names = ", ".join(f"'{format_untrusted(value.name)}'" for value in inputs[:_SHOWN])
        raise UnsupportedNetworkError(f"expected one input, the file has {len(inputs)}: [{names}]")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(tensor.shape.dim) < 2:
        is_half = tensor.elem_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        kind, remedy = _get_type_name(tensor.elem_type), _IN_FLOAT32 if is_half else ""
        got = f"of type {kind} and rank {len(tensor.shape.dim)}{remedy}"
        name = format_untrusted(inputs[0].name)
        raise UnsupportedNetworkError(f"expected a float32 input [N, ...] of known rank; '{name}' is {got}")
    return inputs[0]


def _select_needed(nodes: Sequence[onnx.NodeProto], results: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the results depend on, in the order of the file.

    The checker has made sure that each node comes after those that it depends on.
    """
    wanted, needed = set(results), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(node.input[: _count_data(node)])
    return needed[::-1]


def _count_data(node: onnx.NodeProto) -> int | None:
    """Count the inputs that have data; see :class:`~prefiqs_ext.models.onnx_import.registry.Operator`."""
    return OPERATORS[node.op_type].data if _is_supported(node) else None


def _is_supported(node: onnx.NodeProto) -> bool:
    return node.domain in _ONNX_DOMAINS and node.op_type in OPERATORS


def _add_node(state: State, proto: onnx.NodeProto) -> None:
    """Translate one node: compute it if it is constant, else add it to the torch graph."""
    if _add_constant(state, proto):
        return
    node = Node(state, proto)
    if not _is_supported(proto):
        kind = node.op if proto.domain in _ONNX_DOMAINS else f"{proto.domain}.{node.op}"
        node.refuse(f"operator {format_untrusted(kind)} is not supported; supported: {', '.join(sorted(OPERATORS))}")
    if unknown := sorted(node.attributes.keys() - OPERATORS[node.op].attributes):
        node.refuse(f"attribute {format_untrusted(unknown[0])} is not supported")
    built = OPERATORS[node.op].build(node)
    for name, result in zip(node.outputs, built if isinstance(built, list) else [built], strict=False):
        state.activations[name], state.batch_axes[name] = result, node.batch_axis


def _add_constant(state: State, proto: onnx.NodeProto) -> bool:
    """Compute a node whose result depends on no input of the network. Return whether it is one."""
    name = proto.output[0]
    if name in state.inferred.numbers:
        return True
    if proto.domain not in _ONNX_DOMAINS or proto.op_type not in _CONSTANT_OPERATORS:
        return False
    inputs = dict[str, Array]()
    for value in filter(None, proto.input):
        known = state.find_constant(value)
        if known is None:
            return False
        inputs[value] = known
    sizes = state.inferred.shapes.get(name)
    if sizes is None or None in sizes:  # it could have any size
        return False
    made = _BYTES_OF_A_NUMBER * prod(size or 1 for size in sizes)
    state.budget.charge_bytes(max(made, sum(value.nbytes for value in inputs.values())) + proto.ByteSize())
    state.constants[name] = evaluate(proto, inputs, state.opset, state.budget)
    return True
