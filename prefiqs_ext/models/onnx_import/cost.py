"""What the network of an ONNX file would cost on one image, found before it computes anything.

A file of some bytes can ask for padding without end, or for a map of any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import onnx

from prefiqs_ext.exceptions import UnsupportedNetworkError
from prefiqs_ext.models.onnx_import.state import Array, Shape
from prefiqs_ext.utils.budget import MAX_ACTIVATIONS, MAX_MULTIPLICATIONS

_PER_VALUE = 50  # multiplications in the time that it takes to write one value


def check_cost(
    nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, Shape], constants: Mapping[str, Array], batch: int
) -> None:
    """Check that a network computes and keeps no more for an image than a network of faces may.

    Args:
        nodes: The nodes that the results depend on, in the order of the computation.
        shapes: The shape of every value for one batch.
        constants: The initialisers by name.
        batch: How many images a batch has.

    Raises:
        UnsupportedNetworkError: It costs more.
    """
    last_use = {name: index for index, node in enumerate(nodes) for name in node.input}
    kept, held, multiplications = dict[str, int](), 0, 0
    for index, node in enumerate(nodes):
        new = {name: _count_values(shapes.get(name, ()), batch) for name in node.output if name}
        made, padded = sum(new.values()), _count_padded_values(node, shapes, batch)
        multiplications += _PER_VALUE * (made + padded) + _count_multiplications(node, shapes, constants, made)
        kept |= new
        held += made
        if held + padded > MAX_ACTIVATIONS:
            raise UnsupportedNetworkError(
                f"expected a network that keeps at most {MAX_ACTIVATIONS} numbers per image, got one that keeps more"
            )
        if multiplications > MAX_MULTIPLICATIONS:
            raise UnsupportedNetworkError(
                f"expected a network of at most {MAX_MULTIPLICATIONS} multiplications per image, got one of more"
            )
        held -= sum(kept.pop(name, 0) for name in node.input if last_use[name] == index)


def _count_values(shape: Shape, batch: int) -> int:
    """Count the values of one image."""
    return prod(size or 1 for size in (shape[1:] if shape[:1] == (batch,) else shape))


def _get_integers(node: onnx.NodeProto, name: str) -> Iterator[int]:
    return (value for attribute in node.attribute if attribute.name == name for value in attribute.ints)


def _count_padded_values(node: onnx.NodeProto, shapes: Mapping[str, Shape], batch: int) -> int:
    """Count the values of an input with its pads."""
    shape = shapes.get(node.input[0], ()) if node.input else ()
    pads = list(_get_integers(node, "pads"))
    if node.op_type == "Pad" or len(shape) != 4 or len(pads) != 4:
        return 0
    sides = (shape[2] or 1) + pads[0] + pads[2], (shape[3] or 1) + pads[1] + pads[3]
    return _count_values((*shape[:2], *sides), batch)


def _count_multiplications(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: Mapping[str, Array], made: int
) -> int:
    """Count those of a convolution or a matrix product, and for pooling how many values it reads."""
    if node.op_type == "Conv":
        weight = constants.get(node.input[1])
        return made * prod(weight.shape[1:] if weight is not None else shapes.get(node.input[1], ())[1:] or (1,))
    if node.op_type in ("Gemm", "MatMul"):
        return made * ((shapes.get(node.input[0]) or (1,))[-1] or 1)
    if node.op_type in ("Resize", "Upsample"):
        return made * sum(size or 1 for size in shapes.get(node.input[0], ())[2:])
    if node.op_type in ("MaxPool", "AveragePool"):
        return made * prod(_get_integers(node, "kernel_shape"))
    return 0
