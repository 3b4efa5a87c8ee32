"""Whole networks that PyTorch exports, by both of its exporters, and what other tools make of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from exported_networks import NETWORKS, SIDE, make_network
from onnx import TensorProto, numpy_helper
from onnx_files import as_rows, assert_equal, onnx_runtime, run, saved
from torch import Tensor, nn

from prefiqs_ext import Preset, Scorer, reference
from prefiqs_ext.models import import_onnx

every_network = pytest.mark.parametrize("name", NETWORKS)


def pictures(count: int) -> Tensor:
    return 255 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def export(model: nn.Module, path: Path, opset: int, *, open_batch: bool = True, example: Tensor | None = None) -> Path:
    """By the exporter that traces: it needs no further package, and most files in use come from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (pictures(1) if example is None else example,),
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


class _Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.Hardswish())
        self.gate = nn.Linear(8, 8)
        self.bn2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(8 * 6 * 5, 16)
        self.features = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1((x - 127.5) / 128)))
        gate = torch.sigmoid(self.gate(x.mean((2, 3)))).unsqueeze(-1).unsqueeze(-1)
        x = x + self.blocks(x) * gate
        x = F.max_pool2d(F.avg_pool2d(x, 3, 1, 1), 2, 2, ceil_mode=True)
        x = self.dropout(self.bn2(x))
        x = self.features(self.fc(x.view(x.size(0), -1)))
        return F.normalize(x)


@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_what_pytorch_exports_comes_back(
    opset: int, open_batch: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = _Embedder().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = 255 * torch.rand(3, 3, 23, 20)
    path = tmp_path / "model.onnx"
    export(model, path, opset, open_batch=open_batch, example=x[:1])
    capfd.readouterr()
    imported = import_onnx(path)
    with torch.no_grad():
        assert_equal(imported(x).numpy(), model(x).numpy())
    assert {"gate", "fc"} & {name for name, _ in imported.named_modules()}
    if opset == 17:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Scorer(imported, example=x)
        assert capfd.readouterr() == ("", "")


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
