"""Whole networks that PyTorch exports, by both of its exporters, and what other tools make of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_networks import NETWORKS, SIDE, make_network
from onnx import TensorProto, numpy_helper
from onnx_files import as_rows, assert_equal, onnx_runtime, run, saved
from torch import nn

from prefiqs_ext import Preset, Scorer, reference
from prefiqs_ext.models import import_onnx

every_network = pytest.mark.parametrize("name", NETWORKS)


def pictures(count: int) -> torch.Tensor:
    return 255 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def export(model: nn.Module, path: Path, opset: int, *, open_batch: bool = True) -> Path:
    """By the exporter that traces: most files in use come from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (pictures(1),),
            path,
            input_names=["input"],
            dynamic_axes={"input": {0: "n"}} if open_batch else None,
            opset_version=opset,
            dynamo=False,
        )
    return path


def export_by_dynamo(model: nn.Module, path: Path) -> Path:
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("n")},)
        torch.onnx.export(
            model, (pictures(2),), path, dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False
        )
    return path


def check(model: nn.Module | None, path: Path, *, rows: bool = False) -> None:
    """The import gives what ONNX Runtime gives, and the model itself, for every batch size."""
    imported = import_onnx(path)
    for count in (1, 3):
        x = pictures(count)
        got = run(imported, x.numpy())
        assert_equal(got, as_rows(onnx_runtime(path, x.numpy(), rows=rows)[0]))
        if model is not None:
            with torch.no_grad():
                assert_equal(got, as_rows(model(x).numpy()))


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@every_network
def test_traced_exports(name: str, opset: int, tmp_path: Path) -> None:
    if (name, opset) == ("swin", 9):
        pytest.skip("PyTorch exports no steps of a slice in opset 9")
    model = make_network(name)
    path = export(model, tmp_path / "model.onnx", opset)
    # Upsample of opset 9 has no pixels with centres, so PyTorch exports another interpolation than its own.
    check(None if (name, opset) == ("edgenext", 9) else model, path)


@every_network
def test_traced_exports_of_one_image(name: str, tmp_path: Path) -> None:
    check(make_network(name), export(make_network(name), tmp_path / "model.onnx", 13, open_batch=False), rows=True)


@every_network
def test_dynamo_exports(name: str, tmp_path: Path) -> None:
    check(make_network(name), export_by_dynamo(make_network(name), tmp_path / "model.onnx"))


@every_network
def test_imported_networks_score(name: str, tmp_path: Path) -> None:
    """Two models in float64 made of the same import: the pair passes through attention, windows and all the rest."""
    imported = import_onnx(export(make_network(name), tmp_path / "model.onnx", 17))
    preset = Preset("small", (SIDE, SIDE), "rgb", (0.0,) * 3, (1.0,) * 3)
    images = pictures(3).byte()
    got, expected = Scorer(imported, preset=preset)(images), reference.score(imported, images, preset=preset)
    # As in test_scorer.py: float32 sums against float64.
    torch.testing.assert_close(got.distance.double(), expected.distance, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.embedding.double(), expected.embedding, rtol=0, atol=1e-5)


@every_network
def test_float16_files_are_computed_in_float32(name: str, tmp_path: Path) -> None:
    """All weights rounded to float16, and the graph declared so, against the same weights in a float32 graph."""
    model = make_network(name)
    with torch.no_grad():
        for parameter in (*model.parameters(), *model.buffers()):
            if parameter.is_floating_point():
                parameter.copy_(parameter.half())
    path = export(model, tmp_path / "model.onnx", 13)
    expected = run(import_onnx(path), pictures(2).numpy())
    file = onnx.load(path)
    for tensor in file.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*file.graph.input, *file.graph.value_info, *file.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in file.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
    got = run(import_onnx(saved(file, tmp_path)), pictures(2).numpy())
    assert got.dtype == np.float32
    # Constants of the graph, such as an epsilon or 1/255, are rounded to float16 too: 2**-11 of each.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
