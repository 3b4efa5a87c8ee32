"""ONNX files: graphs that are nearly right, of the operators that are imported and some that are not."""

from __future__ import annotations

import hashlib
import random as _random
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from prefiqs_ext import Scorer
from prefiqs_ext.models import import_onnx
from prefiqs_ext.models.onnx_import.registry import OPERATORS
from prefiqs_ext.models.preset import Preset
from tests.fuzz.mutations import NAMES, NUMBERS, mutate_bytes

_UNARY = (
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "Clip",
    "Dropout",
    "Identity",
    "Abs",
    "Erf",
    "Exp",
    "Neg",
)
_SHAPED = ("BatchNormalization", "PRelu", "Add", "Mul", "MaxPool", "AveragePool", "Pad", "Concat", "Squeeze", "Chain")
_RARE = ("Sub", "Div", "Expand", "Reshape", "Transpose", "Tile", "ReduceMean", "Gemm", "MatMul", "Shape", "Constant")
_OTHERS = ("Gather", "Cast", "Slice", "ConstantOfShape", "Range", "Resize", "Loop", "Einsum")
_SCORED = 10  # of so many files, one becomes a Scorer
_LARGEST = 300  # number in a file that ONNX Runtime is asked about
_SIDES = (1, 3, 8, 12)
_MOST = (1 << 63) - 1


class _OnnxFiles:
    """A file is imported, made into a Scorer as far as it goes, and gives finite numbers for one image or a refusal."""

    name = "onnx"

    def make(self, random: _random.Random) -> bytes:
        model = _Graph(random).make()
        for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
            random.choice(_CHANGES)(model, random)
        data = model.SerializeToString()
        return mutate_bytes(data, random) if random.random() < 0.1 else data

    def run(self, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(data)
            network = import_onnx(path)
            height, width = (*network.declared_input[2:], None, None)[:2]
            preset = Preset.resolve("arcface").with_size((min(height or 12, 224), min(width or 12, 224)))
            if hashlib.sha256(data).digest()[0] % _SCORED == 0:
                Scorer(path, preset=preset)(torch.full((1, 3, *preset.size), 9, dtype=torch.uint8))
                return
            images = torch.linspace(-1, 1, 3 * preset.size[0] * preset.size[1]).view(1, 3, *preset.size)
            try:
                with torch.no_grad():
                    result = network(images)
            except RuntimeError:  # for which a Scorer has a message
                Scorer(path, preset=preset)
                return
            if isinstance(result, torch.Tensor):
                _compare(path, images.numpy(), result.numpy())


def _compare(path: Path, images: np.ndarray, ours: np.ndarray) -> None:
    """Compares the result for one image with that of ONNX Runtime, where it takes the file."""
    model = onnx.load(path)
    graph = model.graph
    numbers = [number for node in graph.node for attribute in node.attribute for number in attribute.ints]
    tensors = [numpy_helper.to_array(each) for each in graph.initializer if each.data_type == TensorProto.INT64]
    numbers += [number for tensor in tensors for number in tensor.ravel().tolist()]
    if max(numbers, default=0) > _LARGEST:  # it computes what no result depends on too
        return
    if _has_empty_value(model, images.shape):  # its pooling divides by zero then, even where no result depends on it
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {session.get_inputs()[0].name: images})
    except Exception:  # it has bounds of its own
        return
    expected = outputs[0].reshape(outputs[0].shape[:2]) if outputs[0].shape[2:] == (1, 1) else outputs[0]
    assert expected.shape == ours.shape, f"expected the shape {expected.shape}, got {ours.shape}"
    # Networks with random weights lose digits; a wrong operator is off by far more than a hundredth.
    error, size = np.abs(expected - ours).max(initial=0), np.abs(expected).max(initial=1e-6)
    assert not error > 1e-2 * size, f"{error / size:g} away from ONNX Runtime"


def _has_empty_value(model: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    """Whether some value of the graph has no elements for an input of this shape."""
    for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=False):
        dimension.dim_value = size
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:  # ONNX Runtime will say so too
        return False
    dimensions = [size for value in inferred.graph.value_info for size in value.type.tensor_type.shape.dim]
    return any(size.HasField("dim_value") and size.dim_value <= 0 for size in dimensions)


class _Graph:
    """A graph that grows node by node, from values whose shapes are known."""

    def __init__(self, random: _random.Random) -> None:
        self.random = random
        side = random.choice(_SIDES)
        self.opset = random.choice((7, 9, 11, 12, 13, 17, 17, 17))
        self.shapes: dict[str, tuple[int, ...]] = {"x": (1, 3, side, side)}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def make(self) -> onnx.ModelProto:
        random = self.random
        self._grow("Conv")
        for _ in range(random.choice((0, 1, 2, 4, 8, 20))):
            kinds = ("Conv",), _UNARY, _SHAPED, _RARE, _OTHERS
            self._grow(random.choice(random.choices(kinds, (30, 25, 30, 12, 0.3))[0]))
        last = [name for name, shape in self.shapes.items() if len(shape) > 1][-1]
        if len(self.shapes[last]) == 4 and random.random() < 0.8:
            last = self._add("GlobalAveragePool", [last], (*self.shapes[last][:2], 1, 1))
            last = self._add("Flatten", [last], self.shapes[last][:2])
        outputs = [last] if random.random() < 0.9 else list(self.shapes)[-2:]
        sizes = [random.choice(("n", 1)), *self.shapes["x"][1:]]
        if random.random() < 0.2:
            sizes[2] = "h"
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in dict.fromkeys(outputs)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        for output in graph.output:
            output.type.tensor_type.shape.SetInParent()
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def _add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node{len(self.nodes)}", **attributes))
        self.shapes[name] = tuple(max(-_MOST, min(size, _MOST)) for size in shape)  # what a file can say
        return name

    def _keep(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}" + self.random.choice(("", ".weight"))
        self.constants[name] = value
        return name

    def _floats(self, *shape: int) -> str:
        generator = np.random.default_rng(self.random.getrandbits(32))
        bounded = [min(max(size, 0), 300) for size in shape]
        return self._keep(generator.standard_normal(bounded).astype(np.float32))

    def _grow(self, op: str) -> None:
        random = self.random
        recent = [name for name, shape in list(self.shapes.items())[-4:] if shape and shape[0] == 1 and len(shape) > 1]
        source = random.choice(recent or ["x"])
        shape = self.shapes[source]
        channels, sides = shape[1] if len(shape) > 1 else 1, shape[2:]
        if op == "Conv" and len(sides) == 2:
            kernel, group = random.choice((1, 3)), random.choice((1, 1, channels))
            made = random.choice((4, 8)) if group == 1 else channels
            weight = self._floats(made, channels // group, kernel, kernel)
            pad = kernel // 2 if random.random() < 0.9 else random.choice(NUMBERS)
            pads = [pad, pad, pad, pad if random.random() < 0.9 else random.choice(NUMBERS)]
            self._add("Conv", [source, weight], (1, made, *sides), group=group, pads=pads)
        elif op in ("Gemm", "MatMul") and len(shape) == 2:
            self._add(op, [source, self._floats(channels, 6)], (1, 6))
        elif op == "BatchNormalization":
            vectors = [self._keep(np.full(min(max(channels, 0), 300), 0.5 + index, np.float32)) for index in range(4)]
            self._add(op, [source, *vectors], shape)
        elif op == "PRelu":
            self._add(op, [source, self._floats(channels, *(1 for _ in sides))], shape)
        elif op in ("Add", "Sub", "Mul", "Div"):
            others = [name for name, other in self.shapes.items() if other == shape]
            second = self._floats(1, channels, *(1 for _ in sides)) if random.random() < 0.5 else random.choice(others)
            self._add(op, [source, second], shape)
        elif op in ("Reshape", "Expand", "Tile"):
            sizes = random.choice(([1, -1], [0, channels, -1], [1, *shape[1:]], [1, 100_000, 100_000], [-1, 1 << 40]))
            new = self._keep(np.array(sizes, np.int64))
            self._add(op, [source, new], (1, int(np.prod(shape))) if len(sizes) == 2 else shape)
        elif op in ("MaxPool", "AveragePool") and len(sides) == 2:
            kernel = random.choice((1, 2, 3))
            new = tuple(max(1, side - kernel + 1) for side in sides)
            self._add(op, [source], (1, channels, *new), kernel_shape=[kernel, kernel])
        elif op in ("GlobalAveragePool", "GlobalMaxPool") and len(sides) == 2:
            self._add(op, [source], (1, channels, 1, 1))
        elif op == "Flatten":
            self._add(op, [source], (1, int(np.prod(shape[1:]))))
        elif op == "Transpose":
            self._add(op, [source], (shape[0], *shape[:0:-1]), perm=[0, *range(len(shape) - 1, 0, -1)])
        elif op == "Slice" and self.opset > 9:
            ends = random.choice((1, -1, channels, *NUMBERS))
            start, end, axis = (self._keep(np.array([number], np.int64)) for number in (0, min(ends, _MOST), 1))
            self._add(op, [source, start, end, axis], (shape[0], max(1, channels - 1), *sides))
        elif op == "Gather":
            places = self._keep(np.array(random.choice(([0], [0, 0, -1], [[0, 0]])), np.int64))
            self._add(op, [source, places], shape, axis=random.choice((1, 1, -1, 0)))
        elif op == "Resize" and len(sides) == 2 and self.opset > 10:
            factor = random.choice((0.5, 1.5, 2.0, 0.0, -1.0, 1e9, np.nan))
            scales = self._keep(np.array([1, 1, factor, random.choice((1, factor))], np.float32))
            mode = random.choice(("nearest", "linear", "cubic"))
            self._add(op, [source, "", scales], (*shape[:2], *(int(2 * side) for side in sides)), mode=mode)
        elif op == "Concat":
            self._add(op, [source, source], (shape[0], 2 * channels, *sides), axis=1)
        elif op == "ReduceMean" and len(shape) == 4:
            self._add(op, [source], (*shape[:2], 1, 1), axes=[2, 3])
        elif op == "Squeeze" and len(shape) == 4:
            pooled = self._add("GlobalMaxPool", [source], (*shape[:2], 1, 1))
            self._with_integers(op, "axes", [pooled], [2, 3], shape[:2], since=13)
        elif op == "Pad" and len(shape) == 4:
            pads = [0, 0, 1, 0, 0, 0, 0, random.choice((1, 1, 1, *NUMBERS))]
            self._with_integers(op, "pads", [source], pads, (*shape[:2], sides[0] + 1, sides[1] + pads[-1]), since=11)
        elif op == "Chain":  # as torch exports x.view(x.size(0), -1)
            size = self._add("Shape", [source], (len(shape),))
            first = self._add("Gather", [size, self._keep(np.array([0], np.int64))], (1,), axis=0)
            rest = self._keep(np.array(random.choice(([-1], [channels, -1], [1 << 40])), np.int64))
            new = self._add("Concat", [first, rest], (2,), axis=0)
            self._add("Reshape", [source, new], (1, int(np.prod(shape))))
        elif op == "Shape":
            self._add(op, [source], (len(shape),))
        elif op == "Constant":
            self._add(op, [], (3,), value=numpy_helper.from_array(np.zeros(3, np.float32)))
        elif op in _UNARY or op in _OTHERS:
            self._add(op, [source], shape)

    def _with_integers(
        self, op: str, name: str, inputs: list[str], values: list[int], shape: tuple[int, ...], *, since: int
    ) -> None:
        """Adds a node whose integers are an input since some opset, and were an attribute before."""
        if self.opset < since:
            self._add(op, inputs, shape, **{name: values})
        else:
            self._add(op, [*inputs, self._keep(np.array(values, np.int64))], shape)


def _change_name(model: onnx.ModelProto, random: _random.Random) -> None:
    """Gives a value another name everywhere, or in one place only."""
    node = random.choice(model.graph.node)
    old, new = random.choice([*node.input, *node.output, "x"]), random.choice(NAMES)
    lists = [names for each in model.graph.node for names in (each.input, each.output)]
    if random.random() < 0.3:
        lists = [random.choice(lists)]
    for names in lists:
        names[:] = [new if name == old else name for name in names]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        if value.name == old:
            value.name = new


def _change_node(model: onnx.ModelProto, random: _random.Random) -> None:
    node = random.choice(model.graph.node)
    kind = random.randrange(5)
    if kind == 0:
        node.op_type = random.choice((*OPERATORS, *_OTHERS, *NAMES))
    elif kind == 1:
        node.domain = random.choice(("", "ai.onnx", "com.microsoft", *NAMES))
    elif kind == 2:
        node.name = random.choice(NAMES)
    elif kind == 3:
        node.input.append(random.choice((*node.input, *NAMES)))
    elif node.input:
        del node.input[random.randrange(len(node.input)) :]


def _change_attribute(model: onnx.ModelProto, random: _random.Random) -> None:
    node = random.choice(model.graph.node)
    names = (
        "pads",
        "strides",
        "dilations",
        "kernel_shape",
        "group",
        "axis",
        "axes",
        "perm",
        "alpha",
        "auto_pad",
        "mode",
    )
    name = random.choice((*names, "ceil_mode", "epsilon", "keepdims", "transB", "value", "min", "max", *NAMES))
    number = random.choice(NUMBERS)
    value = random.choice(
        (number, [number] * random.choice((1, 2, 4, 8)), float(number), float("nan"), "SAME_UPPER", b"\xff\x1b", [1e30])
    )
    del node.attribute[:]
    try:
        node.attribute.append(helper.make_attribute(name, value))
    except (ValueError, TypeError):
        return


def _change_tensor(model: onnx.ModelProto, random: _random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = random.choice(model.graph.initializer)
    kind = random.randrange(4)
    if kind == 0:
        tensor.dims[:] = [random.choice(NUMBERS) for _ in range(random.randrange(5))]
    elif kind == 1:
        tensor.data_type = random.choice((*range(26), 125, -1))
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
    else:
        tensor.raw_data = b"\x00\x00\xc0\x7f" * (len(tensor.raw_data) // 4)  # NaN


def _change_input(model: onnx.ModelProto, random: _random.Random) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    dims = value.type.tensor_type.shape.dim
    if random.random() < 0.3:
        value.type.tensor_type.elem_type = random.randrange(20)
    elif len(dims) and random.random() < 0.7:
        random.choice(dims).dim_value = random.choice(NUMBERS)
    else:
        dims.add().dim_value = random.choice(NUMBERS)


def _repeat(model: onnx.ModelProto, random: _random.Random) -> None:
    """Makes a graph of very many nodes: of one kind in a row, or empty ones."""
    count = random.choice((100, 1000, 30_000))
    if random.random() < 0.3:
        model.graph.node.extend(onnx.NodeProto() for _ in range(count))
        return
    source, op = (
        random.choice(["x", *(tensor.name for tensor in model.graph.initializer)]),
        random.choice(("Identity", "Relu", "Shape")),
    )
    for index in range(count):
        model.graph.node.append(helper.make_node(op, [source], [f"r{index}"]))
        source = f"r{index}"
    if random.random() < 0.7:
        model.graph.output[0].name = source


def _nest(model: onnx.ModelProto, random: _random.Random) -> None:
    """Puts a graph into a graph, level upon level."""
    graph = helper.make_graph([], "inner", [], [])
    for _ in range(random.choice((1, 5, 20, 30))):
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=onnx.GraphProto(name="e"))
        graph = helper.make_graph([node], "inner", [], [])
    model.graph.node.extend(graph.node)


_CHANGES = (
    _change_name,
    _change_name,
    _change_node,
    _change_attribute,
    _change_attribute,
    _change_tensor,
    _change_input,
)
_CHANGES += (*_CHANGES, _repeat, _nest)

TARGETS = (_OnnxFiles(),)
