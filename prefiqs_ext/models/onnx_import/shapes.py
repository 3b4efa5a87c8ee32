"""Infer the shape of every value in an ONNX graph.

This also works if the graph computes shapes itself, as PyTorch exports ``x.view(x.size(0), -1)``: a Shape node gives
the size of x, other nodes make the new shape of it, and a Reshape node uses that.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from prefiqs_ext.models.onnx_import.node import evaluate
from prefiqs_ext.models.onnx_import.state import Array, Inferred, Shape
from prefiqs_ext.utils.budget import Budget

# The operators that exporters compute shapes with, and numbers that follow from shapes.
_ARITHMETIC = """
    Add And Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Floor Gather Greater Identity Less Max Min Mod
    Mul Neg Not Pow Range Reciprocal ReduceProd Reshape Shape Size Slice Sqrt Squeeze Sub Unsqueeze Where
"""
_COMPUTED = frozenset(_ARITHMETIC.split())
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range"})  # these make large values from small ones
_READS_SHAPE = frozenset({"Shape", "Size"})
_MOST_NUMBERS = 64  # the largest value that is taken for a part of a shape
_ROUND = 5  # parts that each node costs in a round of the inference


def infer_shapes(
    model: onnx.ModelProto, source: str, opset: int, budget: Budget, *, side: int | None = None
) -> Inferred:
    """Infer the shape of every value in the graph, for one batch size.

    This runs ONNX's own inference several times. That inference follows computed shapes only in part, and only in late
    opsets. So after each round, the nodes whose results follow from known shapes are replaced by these results. The
    results are valid for this batch size only, so they are used here and nowhere else.

    Args:
        model: The model, which has passed ONNX's checker.
        source: The name of the input. If the file leaves its batch size open, 1 is used.
        opset: The opset of the model.
        budget: What the file may still cost.
        side: What to use for the other sizes of the input that the file leaves open. None: they stay open.

    Returns:
        The shapes, with None for a size that the file leaves open, and the numbers that follow from them.
    """
    skeleton = _build_skeleton(model)
    batch, *others = next(value for value in skeleton.graph.input if value.name == source).type.tensor_type.shape.dim
    if batch.dim_value < 1:
        batch.dim_value = 1
    for size in others if side is not None else ():
        if size.dim_value < 1:
            size.dim_value = side
    made = (node.output[0] for node in model.graph.node if node.op_type == "Constant")
    literals = frozenset((*(tensor.name for tensor in model.graph.initializer), *made))
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in skeleton.graph.initializer}
    while True:
        budget.charge_parts(_ROUND * len(skeleton.graph.node))
        graph = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True).graph
        shapes: dict[str, Shape] = {
            value.name: tuple(
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            )
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        known = len(numbers)
        remaining = [node for node in skeleton.graph.node if not _try_compute(node, shapes, numbers, opset, budget)]
        if len(numbers) == known:
            return Inferred(shapes, numbers, literals)
        del skeleton.graph.node[:]
        skeleton.graph.node.extend(remaining)
        new = list(numbers.items())[known:]
        skeleton.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in new)


def _build_skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without its weights and without the shapes that it declares.

    Large weights become inputs of the same type and shape. Declared shapes may belong to another batch size.
    """
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


def _try_compute(
    node: onnx.NodeProto, shapes: dict[str, Shape], numbers: dict[str, Array], opset: int, budget: Budget
) -> bool:
    """Add the result of a node to `numbers` if it follows from known shapes and numbers. Return whether it does."""
    if node.op_type not in _COMPUTED or len(node.input) > _MOST_NUMBERS:
        return False
    if node.op_type in _GROWING:
        sizes = shapes.get(node.output[0])
        if sizes is None or None in sizes or math.prod(size or 0 for size in sizes) > _MOST_NUMBERS:
            return False
    inputs: dict[str, Array] = {}
    for name in filter(None, node.input):
        if node.op_type in _READS_SHAPE and name in shapes and None not in shapes[name]:
            inputs[name] = np.broadcast_to(np.float32(0), [size or 0 for size in shapes[name]])
        elif node.op_type not in _READS_SHAPE and name in numbers and numbers[name].size <= _MOST_NUMBERS:
            inputs[name] = numbers[name]
        else:
            return False
    numbers[node.output[0]] = evaluate(node, inputs, opset, budget)
    return True
