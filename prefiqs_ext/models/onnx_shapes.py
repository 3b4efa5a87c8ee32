"""The shape of every value in an ONNX graph, also where the graph computes shapes itself (x.view(x.size(0), -1))."""

from __future__ import annotations

import math

import numpy as np
import onnx

from prefiqs_ext.models.onnx_node import Array, Shape, evaluate

# What exporters compute shapes with. None of them makes much out of little.
_ARITHMETIC = frozenset(
    "Add Cast Concat Constant Div Gather Identity Mul Reshape Shape Slice Squeeze Sub Unsqueeze".split()  # noqa: SIM905
)
_MOST_NUMBERS = 64  # in a value that can be part of a shape


def infer_shapes(model: onnx.ModelProto, source: str, opset: int) -> dict[str, Shape]:
    """Value name -> shape, None where the file leaves a size open. The batch of the input `source` counts as 1 if open.

    ONNX's own inference, repeated: it follows computed shapes only in part and only in late opsets, so each round first
    replaces the nodes whose numbers are known by these numbers. They serve here alone, as they hold for one batch size.
    """
    skeleton = _build_skeleton(model)
    batch = next(value for value in skeleton.graph.input if value.name == source).type.tensor_type.shape.dim[0]
    if batch.dim_value < 1:
        batch.dim_value = 1
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in skeleton.graph.initializer}
    while True:
        graph = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True).graph
        shapes: dict[str, Shape] = {
            value.name: tuple(
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            )
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        known = len(numbers)
        remaining = [node for node in skeleton.graph.node if not _try_compute(node, shapes, numbers, opset)]
        if len(numbers) == known:
            return shapes
        del skeleton.graph.node[:]
        skeleton.graph.node.extend(remaining)
        new = list(numbers.items())[known:]
        skeleton.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in new)


def _build_skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its weights, and without what it claims of shapes, which may hold for another batch."""
    graph = onnx.GraphProto(name="skeleton", node=model.graph.node, input=model.graph.input, output=model.graph.output)
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    inputs = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _MOST_NUMBERS:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)


def _try_compute(node: onnx.NodeProto, shapes: dict[str, Shape], numbers: dict[str, Array], opset: int) -> bool:
    """Adds the node's numbers to those known, if they follow from shapes and numbers already known."""
    if node.op_type not in _ARITHMETIC:
        return False
    inputs: dict[str, Array] = {}
    for name in filter(None, node.input):
        if node.op_type == "Shape" and name in shapes and None not in shapes[name]:
            inputs[name] = np.broadcast_to(np.float32(0), [size or 0 for size in shapes[name]])
        elif node.op_type != "Shape" and name in numbers and numbers[name].size <= _MOST_NUMBERS:
            inputs[name] = numbers[name]
        else:
            return False
    numbers[node.output[0]] = evaluate(node, inputs, opset)
    return True
