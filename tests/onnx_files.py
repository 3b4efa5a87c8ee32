"""Small ONNX files for tests, what ONNX Runtime makes of them, and what the importer does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from prefiqs_ext.models import import_onnx

ort = pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: dict[str, Array] | None = None,
    *,
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:  # the standard wants some shape here; where none could be inferred, a scalar's
        output.type.tensor_type.shape.SetInParent()
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def onnx_runtime(path: Path, x: Array, *, rows: bool = False) -> list[Array]:
    """The file's outputs by ONNX Runtime; rows: image by image, for a file that fixes a batch of 1."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = next(value.name for value in session.get_inputs())
    parts = [session.run(None, {name: part}) for part in (np.split(x, len(x)) if rows else [x])]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def run(module: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        out: Tensor = module(torch.from_numpy(x))
    return out.numpy()


def as_rows(x: Array) -> Array:
    """[N, d] for [N, d, 1, 1], as the importer gives it."""
    return x.reshape(x.shape[:2]) if x.shape[2:] == (1, 1) else x


def assert_equal(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape
    # Two float32 sums of the same terms in other orders: relative to the largest value, as sums may cancel.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-30))


class Case(NamedTuple):
    """A graph of one node: y = op(x, *constants), or with x at another place among the inputs."""

    op: str
    shape: tuple[int, ...]
    constants: tuple[Array | None, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012, never changed
    opset: int = 17
    x_at: int = 0

    def model(self, batch: int | str = "n") -> onnx.ModelProto:
        names = ["" if value is None else f"c{i}" for i, value in enumerate(self.constants)]
        inputs = [*names[: self.x_at], "x", *names[self.x_at :]]
        node = helper.make_node(self.op, inputs, ["y"], name="the_node", **self.attributes)
        constants = {name: value for name, value in zip(names, self.constants, strict=True) if value is not None}
        return make_model([node], (batch, *self.shape), constants, opset=self.opset)


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        import_onnx(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"cannot import {path}: ")
    assert len(text) < 600


def write_small_network(file: Path, size: int) -> None:
    """One convolution, for crops of `size` x `size` pixels: as fast as a network can be."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", strides=[8, 8]),
        helper.make_node("Flatten", ["c"], ["y"], name="flatten"),
    ]
    model = make_model(nodes, ("n", 3, size, size), {"w": floats(8, 3, 8, 8)})
    file.write_bytes(model.SerializeToString())
