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
from typing import Any

import onnx
from torch import fx

from prefiqs_ext.exceptions import FileFormatError, MissingFileError, UnsupportedNetworkError
from prefiqs_ext.models.file_kinds import refuse_other_kinds
from prefiqs_ext.models.onnx_node import Node, State, evaluate, make_identifier
from prefiqs_ext.models.onnx_operators import OPERATORS, SHAPED_BY_INFERENCE
from prefiqs_ext.models.onnx_shapes import infer_shapes
from prefiqs_ext.models.state_dict import QUANTISED
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.text import format_path, join_lines
from prefiqs_ext.utils.torch_defaults import torch_defaults

MAX_BYTES = 1 << 30
"""The largest file that is read. It is more than twice as large as an IResNet-200 in float32."""

_OLDEST_OPSET = 7  # the first one with NumPy's rules of broadcasting
_MAX_MESSAGE = 400  # characters of an error

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


@torch_defaults()
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
    try:
        with explain_read_errors(format_path(str(path))):
            if not path.exists():
                raise MissingFileError(f"no such file: {path}")
            model = _read_model(path)
        return _build_network(model)
    except _ERRORS as error:
        message = join_lines(error) or type(error).__name__
        kind = UnsupportedNetworkError if isinstance(error, UnsupportedNetworkError) else FileFormatError
        raise kind(f"cannot import {path}: {message[:_MAX_MESSAGE]}") from error


# What this package, torch and onnx raise for a bad file. MissingFileError and FileAccessError are none of them.
_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    RuntimeError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


def _read_model(path: Path) -> onnx.ModelProto:
    """Read a model and check it, as far as this is possible without looking at the single nodes."""
    if not path.is_file():
        raise FileFormatError("expected a regular file")
    refuse_other_kinds(path, "ONNX")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"expected at most {MAX_BYTES} bytes, the file has {path.stat().st_size}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's error has no public class
        raise FileFormatError(
            f"expected an ONNX file; this one is truncated, damaged or something else ({error})"
        ) from error
    if not model.graph.node:
        raise FileFormatError("expected an ONNX model with a graph, found none (an empty file, or not ONNX)")
    if model.functions:
        raise UnsupportedNetworkError(
            f"expected plain operators, found the model-local function {model.functions[0].name!r}"
        )
    for value in model.graph.input:
        if not value.HasField("type"):
            raise FileFormatError(f"expected a float32 input [N, ...]; the file does not say what {value.name!r} is")
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
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
            if attribute.HasField("g") or attribute.graphs:
                raise UnsupportedNetworkError(f"{node.op_type} node {node.name!r}: control flow is not supported")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise UnsupportedNetworkError(f"{node.op_type} node {node.name!r}: sparse tensors are not supported")
    if graph.sparse_initializer:
        raise UnsupportedNetworkError("sparse initialisers are not supported")
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise FileFormatError(f"the data of {tensor.name!r} are in another file; save the model as one file")
        if tensor.data_type not in _DATA_TYPES:
            kind = _get_type_name(tensor.data_type)
            remedy = _IN_FLOAT32 if kind.endswith("FLOAT16") else f", {QUANTISED}" if "8" in kind else ""
            raise UnsupportedNetworkError(f"the data of {tensor.name!r} have the unsupported ONNX type {kind}{remedy}")


def _get_type_name(data_type: int) -> str:
    """Return ONNX's name of a data type, such as "FLOAT16", or its number if it has no name."""
    known: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return known.get(data_type, str(data_type))


def _get_opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in _ONNX_DOMAINS), default=0)


_ONNX_DOMAINS = ("", "ai.onnx")


def _build_network(model: onnx.ModelProto) -> ImportedNetwork:
    """Translate a checked model."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = _find_input([value for value in model.graph.input if value.name not in constants])
    state = State(_get_opset(model), constants, infer_shapes(model, source.name, _get_opset(model)))
    placeholder = state.graph.placeholder(make_identifier(source.name) or "input")
    declared = tuple(size.dim_value or None for size in source.type.tensor_type.shape.dim)
    if len(declared) == 4 and declared[3] == 3 and declared[1] != 3:
        batch, height, width, channels = declared
        declared = batch, channels, height, width
        placeholder = state.graph.call_method("permute", (placeholder, 0, 2, 3, 1))
    state.activations[source.name] = placeholder

    results = [value.name for value in model.graph.output]
    for proto in _select_needed(model.graph.node, results):
        _add_node(state, proto)
    for name in results:
        if name not in state.activations:
            raise UnsupportedNetworkError(f"expected an output that depends on the input; {name!r} does not")
    outputs = {name: state.activations[name] for name in results}
    state.graph.output(outputs if len(outputs) > 1 else outputs[results[0]])
    module = ImportedNetwork(state.owned, state.graph, class_name="Network").eval()
    module.meta[_DECLARED] = declared
    return module


def _find_input(inputs: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """Return the one input. Refuse a network with several, or with one that is not float32 of known rank."""
    if len(inputs) != 1:
        raise UnsupportedNetworkError(
            f"expected one input, the file has {len(inputs)}: {[value.name for value in inputs]}"
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(tensor.shape.dim) < 2:
        is_half = tensor.elem_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        kind, remedy = _get_type_name(tensor.elem_type), _IN_FLOAT32 if is_half else ""
        got = f"of type {kind} and rank {len(tensor.shape.dim)}{remedy}"
        raise UnsupportedNetworkError(f"expected a float32 input [N, ...] of known rank; {inputs[0].name!r} is {got}")
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
        state.constants[node.outputs[0]] = evaluate(proto, known, state.opset)
        return
    if not standard or node.op not in OPERATORS:
        kind = node.op if standard else f"{proto.domain}.{node.op}"
        node.refuse(f"operator {kind} is not supported; supported: {', '.join(sorted(OPERATORS))}")
    if unknown := sorted(node.attributes.keys() - OPERATORS[node.op].attributes):
        node.refuse(f"attribute {unknown[0]} is not supported")
    state.activations[node.outputs[0]] = OPERATORS[node.op].build(node)
