"""Graphs of several nodes, written by hand: where the batch lies, and what is computed before any image comes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import Array, assert_equal, assert_refused, floats, ints, make_model, onnx_runtime, positive, run, saved

from prefiqs_ext.models import import_onnx


class Graph(NamedTuple):
    """Nodes as lines: "y z = Op(x, c) attribute=value"."""

    lines: str
    shape: tuple[int, ...]
    constants: dict[str, Array] = {}  # noqa: RUF012, never changed
    opset: int = 17

    def model(self, batch: int | str = "n") -> onnx.ModelProto:
        nodes = []
        for line in filter(None, map(str.strip, self.lines.splitlines())):
            outputs, call = line.split(" = ")
            op, rest = call.split("(")
            inputs, attributes = rest.split(")")
            pairs = (pair.split("=") for pair in attributes.split())
            parsed = {name: [int(v) for v in value.split(",")] for name, value in pairs}
            single = {"axis", "keepdims", "num_outputs", "to", "group"}
            chosen = {name: value[0] if name in single else value for name, value in parsed.items()}
            nodes.append(helper.make_node(op, inputs.split(", "), outputs.split(), **chosen))
        return make_model(nodes, (batch, *self.shape), self.constants, opset=self.opset)


EQUAL = {
    "split": Graph("a b c = Split(x) axis=1\nd = Concat(c, a) axis=1\ny = Mul(d, d)", (6, 5)),
    "split sizes": Graph("a b = Split(x, s) axis=-1\ny = Concat(b, a) axis=2", (6, 5), {"s": ints(2, 3)}),
    "split opset 11": Graph("a b = Split(x) axis=1 split=1,5\nb2 = Mul(b, a)\ny = Add(b2, b)", (6, 5), {}, 11),
    "split num_outputs": Graph("a b = Split(x) axis=2 num_outputs=2\ny = Concat(b, a) axis=2", (6, 5), {}, 18),
    "roots and logarithms": Graph("a = Abs(x)\nb = Add(a, one)\nc = Sqrt(b)\ny = Log(c)", (6,), {"one": positive(6)}),
    "variance": Graph(
        """m = ReduceMean(x) axes=-1
        d = Sub(x, m)
        s = Pow(d, two)
        v = ReduceMean(s) axes=-1
        e = Add(v, eps)
        r = Sqrt(e)
        y = Div(d, r)""",
        (3, 6),
        {"two": np.float32(2), "eps": np.float32(1e-5)},
    ),
    "computed operands": Graph("t = Transpose(x) perm=0,2,1\ny = MatMul(x, t)", (3, 6)),
    "channels before rows": Graph("a = Mul(g, x)\ny = Transpose(a) perm=0,3,1,2", (4, 3, 5), {"g": floats(5)}),
    "qkv first": Graph(
        """r = Reshape(x, shape)
        p = Transpose(r) perm=2,0,3,1,4
        q = Gather(p, zero) axis=0
        k = Gather(p, one) axis=0
        v = Gather(p, two) axis=0
        kt = Transpose(k) perm=0,1,3,2
        a = MatMul(q, kt)
        s = Softmax(a) axis=-1
        o = MatMul(s, v)
        ot = Transpose(o) perm=0,2,1,3
        y = Reshape(ot, back)""",
        (4, 18),
        {
            "shape": ints(-1, 4, 3, 2, 3),
            "back": ints(-1, 4, 6),
            "zero": np.array(0),
            "one": np.array(1),
            "two": np.array(-1),
        },
    ),
    "heads in the batch": Graph(
        """r = Reshape(x, heads)
        t = Transpose(r) perm=0,2,1,3
        m = Reshape(t, merged)
        mt = Transpose(m) perm=0,2,1
        a = MatMul(m, mt)
        b = Reshape(a, split)
        c = Add(b, bias)
        y = ReduceSum(c, axes)""",
        (4, 6),
        {
            "heads": ints(0, 4, 2, 3),
            "merged": ints(-1, 4, 3),
            "split": ints(-1, 2, 4, 4),
            "bias": floats(2, 4, 4),
            "axes": ints(3),
        },
    ),
    "sequence first": Graph(
        "t = Transpose(x) perm=1,0,2\nm = MatMul(t, w)\na = Add(m, b)\ny = Transpose(a) perm=1,0,2",
        (4, 6),
        {"w": floats(6, 5), "b": floats(4, 1, 5)},
    ),
    "axes come and go": Graph(
        """u = Unsqueeze(x, lead)
        a = ReduceMax(u) axes=0 keepdims=0
        v = Unsqueeze(a, lead)
        s = Squeeze(v, lead)
        y = Add(s, x)""",
        (4, 6),
        {"lead": ints(0)},
    ),
    "a token for every image": Graph(
        """s = Shape(x)
        n = Gather(s, zero) axis=0
        n1 = Unsqueeze(n, lead)
        shape = Concat(n1, rest) axis=0
        t = Expand(token, shape)
        y = Concat(t, x, t) axis=1""",
        (4, 6),
        {"zero": np.array(0), "lead": ints(0), "rest": ints(2, 6), "token": floats(1, 1, 6)},
    ),
    "a number from a shape": Graph(
        """s = Shape(x)
        w = Gather(s, last) axis=0
        f = Cast(w) to=1
        r = Sqrt(f)
        y = Div(x, r)""",
        (4, 6),
        {"last": np.array(-1)},
    ),
    "weights made of weights": Graph(
        """h = Gather(table, places) axis=0
        t = Transpose(h) perm=1,0
        e = Exp(t)
        n = Neg(e)
        d = Div(n, scale)
        y = MatMul(x, d)""",
        (4,),
        {"table": floats(3, 4), "places": ints(2, 0, 1, 1, 2), "scale": np.float32(3)},
    ),
    "a slice to a computed end": Graph(
        "s = Shape(x)\nw = Slice(s, two, three)\nh = Div(w, two)\ny = Slice(x, one, h, two)",
        (4, 6),
        {"one": ints(1), "two": ints(2), "three": ints(3)},
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_graph_equals_onnx_runtime(name: str, tmp_path: Path) -> None:
    graph = EQUAL[name]
    path = saved(graph.model(), tmp_path)
    module = import_onnx(path)
    for batch in (1, 5):
        x = floats(batch, *graph.shape, seed=batch)
        assert_equal(run(module, x), onnx_runtime(path, x)[0])


@pytest.mark.parametrize("name", EQUAL)
def test_graph_with_fixed_batch_takes_any(name: str, tmp_path: Path) -> None:
    graph = EQUAL[name]
    path = saved(graph.model(batch=1), tmp_path)
    x = floats(3, *graph.shape)
    assert_equal(run(import_onnx(path), x), onnx_runtime(path, x, rows=True)[0])


def test_initialisers_that_are_inputs_too(tmp_path: Path) -> None:
    """As every file up to IR version 3 has them."""
    model = EQUAL["sequence first"].model()
    for name, shape in (("w", (6, 5)), ("b", (4, 1, 5))):
        model.graph.input.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    path, x = saved(model, tmp_path), floats(2, 4, 6)
    assert_equal(run(import_onnx(path), x), onnx_runtime(path, x)[0])


REFUSED = {
    "batches that miss each other": (
        Graph("t = Transpose(x) perm=1,0,2\ny = Add(t, x)", (4, 4)),
        "inputs whose batches meet, got shapes",
    ),
    "rows of different counts": (
        Graph("r = Reshape(x, s)\nu = Reshape(x, t)\ny = Add(r, u)", (4, 1), {"s": ints(-1, 1, 1), "t": ints(0, 4, 1)}),
        "inputs whose batches meet",
    ),
    "images multiplied with each other": (
        Graph("r = Reshape(x, s)\nt = Transpose(r) perm=1,0\ny = MatMul(r, t)", (4,), {"s": ints(0, 4)}),
        "MatMul",
    ),
    "quantised": (
        Graph("y = DequantizeLinear(x, s)", (4,), {"s": np.float32(1)}),
        "DequantizeLinear, of a quantised network: take the one in float32",
    ),
    "a batch that the file names": (Graph("y = Reshape(x, s)", (4, 6), {"s": ints(2, -1)}), "keeps the batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    graph, message = REFUSED[name]
    assert_refused(saved(graph.model(), tmp_path), message)
