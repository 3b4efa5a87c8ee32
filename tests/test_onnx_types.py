"""Types of values in ONNX files: weights that are not float32, an output or an input without a type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import Case, assert_equal, assert_refused, floats, onnx_runtime, run, saved

from prefiqs_ext.models import import_onnx

_IMAGE = (4, 7, 6)
_CONV = Case("Conv", _IMAGE, (floats(5, 4, 3, 3), floats(5)), {"pads": [0, 1, 2, 0]})


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.UINT8])
def test_half_and_quantised_weights_are_refused_by_name(kind: int, tmp_path: Path) -> None:
    model = _CONV.model()
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weights).astype(helper.tensor_dtype_to_np_dtype(kind))
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    remedy = "take the one in float32" if kind != TensorProto.BFLOAT16 else "export the network in float32"
    assert_refused(saved(model, tmp_path), rf"ONNX type {TensorProto.DataType.Name(kind)}\b.*{remedy}")


def test_an_output_without_a_type_and_an_input(tmp_path: Path) -> None:
    model, x = _CONV.model(), floats(2, *_IMAGE)
    expected = run(import_onnx(saved(model, tmp_path)), x)
    model.graph.output[0].ClearField("type")
    path = saved(model, tmp_path)
    np.testing.assert_array_equal(run(import_onnx(path), x), expected)
    assert_equal(expected, onnx_runtime(path, x)[0])
    model.graph.input[0].ClearField("type")
    assert_refused(saved(model, tmp_path), r"expected a float32 input .* does not say what 'x' is")
