"""Import an ONNX file as a torch.fx.GraphModule of ordinary modules, with the names that they have in the file.

The module computes what the file says, for any batch size. To import a file, the shape of every value is inferred, for
the batch size that the file declares (or 1 if it leaves it open). The nodes are then translated one by one;
onnx_operators.py says how. Reshape and Expand take their shape from this inference, and leave the batch size free. So
nodes that only compute a shape are not needed and are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import onnx
from torch import fx

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models.file_kinds import refuse_other_kinds
from prefiqs_ext.models.onnx_cost import check_cost
from prefiqs_ext.models.onnx_fields import charge_message
from prefiqs_ext.models.onnx_node import Node, State, evaluate
from prefiqs_ext.models.onnx_operators import OPERATORS, SHAPED_BY_INFERENCE
from prefiqs_ext.models.onnx_shapes import infer_shapes
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
_DATA_TYPES = frozenset(onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOL"))

# These operators are computed at once if all their inputs are constants. They never make a constant larger.
_CONSTANT_OPERATORS = frozenset({"Constant", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})

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
        path: The file. Its network must be in float32 with one input and opset 7 or later, and its weights must be in
            the same file.

    Returns:
        A module that maps a float32 tensor ``[N, ...]`` to the output of the network. If the file has several outputs,
        the result is a dictionary by their names. N may have any size, even if the file fixes it. If the file takes
        images ``[N, H, W, 3]``, the module takes ``[N, 3, H, W]``. Layers have the names of their weights: a
        convolution with the weight `layer1.0.conv1.weight` is `layer1.0.conv1`. Other layers have the names of their
        nodes.

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
    # This comes before the checker, which would open other files if the model says that its weights are there.
    _refuse_hidden_data(model.graph)
    onnx.checker.check_model(data)
    if _get_opset(model) < _OLDEST_OPSET:
        raise UnsupportedNetworkError(f"expected opset {_OLDEST_OPSET} or later, the file has {_get_opset(model)}")
    return model


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
            remedy = _IN_FLOAT32 if kind.endswith("FLOAT16") else f", {QUANTISED}" if "8" in kind else ""
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
    shapes = infer_shapes(model, source.name, opset, budget)
    state = State(opset, constants, shapes, budget)
    placeholder = state.graph.placeholder("images")
    declared = tuple(size.dim_value or None for size in source.type.tensor_type.shape.dim)
    if len(declared) == 4 and declared[3] == 3 and declared[1] != 3:
        batch, height, width, channels = declared
        declared = batch, channels, height, width
        placeholder = state.graph.call_method("permute", (placeholder, 0, 2, 3, 1))
    state.activations[source.name] = placeholder

    results = [value.name for value in model.graph.output]
    needed = _select_needed(model.graph.node, results)
    if None in declared[1:]:
        shapes = infer_shapes(model, source.name, opset, budget, side=_USUAL_SIDE)
    check_cost(needed, shapes, constants, declared[0] or 1)
    for proto in needed:
        _add_node(state, proto)
    for name in results:
        if name not in state.activations:
            raise UnsupportedNetworkError(
                f"expected an output that depends on the input; '{format_untrusted(name)}' does not"
            )
    outputs = {name: state.activations[name] for name in results}
    state.graph.output(outputs if len(outputs) > 1 else outputs[results[0]])
    module = ImportedNetwork(state.owned, state.graph, class_name="Network").eval()
    module.meta[_DECLARED] = declared
    return module


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
            wanted.update(node.input[:1] if node.op_type in SHAPED_BY_INFERENCE else node.input)
    return needed[::-1]


def _add_node(state: State, proto: onnx.NodeProto) -> None:
    """Translate one node: compute it if it is constant, else add it to the torch graph."""
    node = Node(state, proto)
    standard = proto.domain in _ONNX_DOMAINS
    if standard and node.op in _CONSTANT_OPERATORS and all(name in state.constants for name in node.inputs):
        known = {name: state.constants[name] for name in node.inputs}
        state.budget.charge_bytes(sum(value.nbytes for value in known.values()) + proto.ByteSize())
        state.constants[node.outputs[0]] = evaluate(proto, known, state.opset, state.budget)
        return
    if not standard or node.op not in OPERATORS:
        kind = node.op if standard else f"{proto.domain}.{node.op}"
        node.refuse(f"operator {format_untrusted(kind)} is not supported; supported: {', '.join(sorted(OPERATORS))}")
    if unknown := sorted(node.attributes.keys() - OPERATORS[node.op].attributes):
        node.refuse(f"attribute {format_untrusted(unknown[0])} is not supported")
    state.activations[node.outputs[0]] = OPERATORS[node.op].build(node)
