"""Every operator of the ONNX importer, in every variant it knows, against ONNX Runtime; and those it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_files import Case, as_rows, assert_equal, assert_refused, floats, ints, onnx_runtime, positive, run, saved
from torch import fx

from prefiqs_ext.models import import_onnx
from prefiqs_ext.models.onnx_import.registry import OPERATORS

_IMAGE = (4, 7, 6)
_NORM = (positive(4), floats(4), floats(4, seed=1), positive(4, seed=1))

EQUAL = {
    "conv": Case("Conv", _IMAGE, (floats(5, 4, 3, 3),)),
    "conv bias": Case("Conv", _IMAGE, (floats(5, 4, 3, 3), floats(5)), {"pads": [1, 1, 1, 1]}),
    "conv opset 7": Case("Conv", _IMAGE, (floats(5, 4, 3, 3), floats(5)), {"kernel_shape": [3, 3]}, 7),
    "conv opset 22": Case("Conv", _IMAGE, (floats(5, 4, 3, 3), floats(5)), {}, 22),
    "conv stride": Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
    "conv dilation": Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"dilations": [1, 2], "pads": [1, 2, 1, 2]}),
    "conv groups": Case("Conv", _IMAGE, (floats(6, 2, 3, 3), floats(6)), {"group": 2}),
    "conv depthwise": Case("Conv", _IMAGE, (floats(4, 1, 3, 3),), {"group": 4, "pads": [1, 1, 1, 1]}),
    "conv 1x1": Case("Conv", _IMAGE, (floats(5, 4, 1, 1),)),
    "conv 3x5": Case("Conv", _IMAGE, (floats(5, 4, 3, 5),), {"pads": [1, 2, 1, 2]}),
    "conv uneven pads": Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"pads": [0, 1, 2, 0]}),
    "conv same upper": Case("Conv", _IMAGE, (floats(5, 4, 3, 2),), {"auto_pad": "SAME_UPPER"}),
    "conv same lower": Case("Conv", _IMAGE, (floats(5, 4, 3, 2),), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "conv valid": Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"auto_pad": "VALID"}),
    "norm": Case("BatchNormalization", _IMAGE, _NORM, {"epsilon": 2e-5}),
    "norm opset 7": Case("BatchNormalization", _IMAGE, _NORM, {}, 7),
    "norm opset 8": Case("BatchNormalization", _IMAGE, _NORM, {"spatial": 1}, 8),
    "norm opset 9": Case("BatchNormalization", _IMAGE, _NORM, {"epsilon": 1e-3, "momentum": 0.5}, 9),
    "norm opset 15": Case("BatchNormalization", _IMAGE, _NORM, {"training_mode": 0}, 15),
    "norm rank 2": Case("BatchNormalization", (4,), _NORM),
    "norm rank 3": Case("BatchNormalization", (4, 5), _NORM),
    "prelu C,1,1": Case("PRelu", _IMAGE, (floats(4, 1, 1),)),
    "prelu 1,C,1,1": Case("PRelu", _IMAGE, (floats(1, 4, 1, 1),), {}, 9),
    "prelu 1": Case("PRelu", _IMAGE, (floats(1),), {}, 7),
    "prelu scalar": Case("PRelu", _IMAGE, (floats(),)),
    "prelu 1,1,1": Case("PRelu", _IMAGE, (floats(1, 1, 1),)),
    "prelu rank 2": Case("PRelu", (5,), (floats(5),)),
    "relu": Case("Relu", _IMAGE),
    "leaky relu": Case("LeakyRelu", _IMAGE, (), {"alpha": 0.2}),
    "leaky relu default": Case("LeakyRelu", _IMAGE),
    "sigmoid": Case("Sigmoid", _IMAGE),
    "tanh": Case("Tanh", _IMAGE),
    "hard swish": Case("HardSwish", _IMAGE),
    "hard sigmoid": Case("HardSigmoid", _IMAGE),
    "hard sigmoid alpha": Case("HardSigmoid", _IMAGE, (), {"alpha": 1 / 6, "beta": 0.4}),
    "clip relu6": Case("Clip", _IMAGE, (np.float32(0), np.float32(6))),
    "clip min": Case("Clip", _IMAGE, (np.float32(0),)),
    "clip max": Case("Clip", _IMAGE, (None, np.float32(0.3))),
    "clip both": Case("Clip", _IMAGE, (np.float32(-0.2), np.float32(0.3))),
    "clip neither": Case("Clip", _IMAGE),
    "clip opset 7": Case("Clip", _IMAGE, (), {"min": -0.5, "max": 0.5}, 7),
    "softmax": Case("Softmax", (3, 5)),
    "softmax axis": Case("Softmax", (3, 5), (), {"axis": 1}),
    "softmax opset 11": Case("Softmax", (5,), (), {}, 11),
    "sub number": Case("Sub", _IMAGE, (np.float32([127.5]),)),
    "number sub": Case("Sub", _IMAGE, (np.float32(1.5),), x_at=1),
    "mul number": Case("Mul", _IMAGE, (np.float32([[[[0.0078125]]]]),)),
    "number div": Case("Div", _IMAGE, (np.float32(2),), x_at=1),
    "div channels": Case("Div", _IMAGE, (positive(4, 1, 1),)),
    "add channels": Case("Add", _IMAGE, (floats(1, 4, 1, 1),), {}, 7),
    "channels mul": Case("Mul", _IMAGE, (floats(4, 1, 1),), x_at=1),
    "add last axis": Case("Add", (5,), (floats(5),)),
    "add map": Case("Add", _IMAGE, (floats(7, 6),)),
    "gemm transB": Case("Gemm", (6,), (floats(5, 6), floats(5)), {"transB": 1}),
    "gemm": Case("Gemm", (6,), (floats(6, 5), floats(1, 5))),
    "gemm no bias": Case("Gemm", (6,), (floats(6, 5),)),
    "gemm one bias": Case("Gemm", (6,), (floats(6, 5), floats(1))),
    "gemm scalar bias": Case("Gemm", (6,), (floats(6, 5), floats())),
    "matmul": Case("MatMul", (6,), (floats(6, 5),)),
    "matmul rank 3": Case("MatMul", (3, 6), (floats(6, 5),)),
    "max pool": Case("MaxPool", _IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "max pool pads": Case("MaxPool", _IMAGE, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "max pool opset 7": Case("MaxPool", _IMAGE, (), {"kernel_shape": [3, 2]}, 7),
    "max pool uneven": Case("MaxPool", _IMAGE, (), {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "strides": [2, 2]}),
    "max pool wide pads": Case("MaxPool", _IMAGE, (), {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    "max pool dilation": Case("MaxPool", _IMAGE, (), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    "max pool same": Case("MaxPool", _IMAGE, (), {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "max pool ceil": Case("MaxPool", _IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "max pool ceil pads": Case(
        "MaxPool", _IMAGE, (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    ),
    "max pool ceil last window in the padding": Case(
        "MaxPool", (4, 5, 5), (), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}, 22
    ),
    "average pool": Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 3], "strides": [2, 1]}),
    "average pool pads": Case("AveragePool", _IMAGE, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average pool counts pads": Case(
        "AveragePool", _IMAGE, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "average pool uneven": Case(
        "AveragePool", _IMAGE, (), {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "count_include_pad": 1}
    ),
    "average pool opset 7": Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 2]}, 7),
    "average pool ceil": Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "average pool ceil pads": Case(
        "AveragePool",
        (4, 8, 7),
        (),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1, "count_include_pad": 1},
        19,
    ),
    "average pool uneven excludes pads": Case(
        "AveragePool", _IMAGE, (), {"kernel_shape": [3, 2], "pads": [0, 1, 2, 0], "strides": [2, 1]}
    ),
    "average pool same": Case(
        "AveragePool", _IMAGE, (), {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}
    ),
    "max pool ceil uneven": Case(
        "MaxPool", _IMAGE, (), {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1}
    ),
    "global average pool": Case("GlobalAveragePool", _IMAGE),
    "global max pool": Case("GlobalMaxPool", _IMAGE),
    "mean opset 17": Case("ReduceMean", _IMAGE, (), {"axes": [2, 3]}, 17),
    "mean opset 18": Case("ReduceMean", _IMAGE, (ints(-1, -2),), {"keepdims": 0}, 18),
    "norm l2": Case("ReduceL2", (5,), (), {"axes": [-1]}, 17),
    "sum opset 11": Case("ReduceSum", _IMAGE, (), {"axes": [1], "keepdims": 0}, 11),
    "sum opset 13": Case("ReduceSum", _IMAGE, (ints(2, 3),)),
    "max": Case("ReduceMax", _IMAGE, (), {"axes": [-1, 1]}, 17),
    "min opset 18": Case("ReduceMin", _IMAGE, (ints(3),), {"keepdims": 0}, 18),
    "lp norm": Case("LpNormalization", (5,)),
    "lp norm axis": Case("LpNormalization", _IMAGE, (), {"axis": 1, "p": 1}),
    "layer norm": Case("LayerNormalization", (3, 6), (positive(6), floats(6))),
    "layer norm no bias": Case("LayerNormalization", _IMAGE, (positive(7, 6),), {"axis": 2, "epsilon": 1e-3}),
    "instance norm": Case("InstanceNormalization", _IMAGE, (positive(4), floats(4)), {"epsilon": 1e-3}),
    "instance norm rank 3": Case("InstanceNormalization", (4, 5), (positive(4), floats(4))),
    "abs": Case("Abs", _IMAGE),
    "cos": Case("Cos", _IMAGE),
    "erf": Case("Erf", _IMAGE),
    "exp": Case("Exp", _IMAGE),
    "neg": Case("Neg", _IMAGE),
    "reciprocal": Case("Reciprocal", _IMAGE),
    "sin": Case("Sin", _IMAGE),
    "elu": Case("Elu", _IMAGE, (), {"alpha": 0.7}),
    "softplus": Case("Softplus", _IMAGE),
    "mish": Case("Mish", _IMAGE, (), {}, 18),
    "gelu": Case("Gelu", _IMAGE, (), {}, 20),
    "gelu tanh": Case("Gelu", _IMAGE, (), {"approximate": "tanh"}, 20),
    "cast": Case("Cast", _IMAGE, (), {"to": 1}),
    "pow": Case("Pow", _IMAGE, (np.float32(2),)),
    "number pow": Case("Pow", _IMAGE, (np.float32(2),), x_at=1),
    "variadic sum": Case("Sum", _IMAGE, (floats(4, 1, 1), np.float32(2), floats(6))),
    "sum of one": Case("Sum", _IMAGE),
    "max number": Case("Max", _IMAGE, (np.float32(0.2),)),
    "min channels": Case("Min", _IMAGE, (floats(4, 1, 1), np.float32([0.3]))),
    "add of any batch": Case("Add", (5, 2), (floats(1, 5, 2),)),
    "constant matmul": Case("MatMul", (4, 6), (floats(3, 4),), x_at=1),
    "matmul stack": Case("MatMul", (3, 4, 6), (floats(3, 6, 2),)),
    "gemm factors": Case("Gemm", (6,), (floats(6, 5), floats(5)), {"alpha": 0.5, "beta": 2.0}),
    "slice": Case("Slice", _IMAGE, (ints(1, -2), ints(3, 2**63 - 1), ints(1, 3))),
    "slice steps": Case("Slice", _IMAGE, (ints(0, 1), ints(2**31 - 1, -1), ints(0, 2), ints(1, 2))),
    "slice opset 9": Case("Slice", _IMAGE, (), {"starts": [0, 1], "ends": [2**63 - 1, 3]}, 9),
    "gather": Case("Gather", _IMAGE, (np.int64(-1),), {"axis": 2}),
    "gather list": Case("Gather", _IMAGE, (ints(3, 0, 0, -1),), {"axis": 1}),
    "gather matrix": Case("Gather", _IMAGE, (ints(3, 0, 1, 2, 1, -2).reshape(2, 3),), {"axis": -1}),
    "gather many": Case("Gather", _IMAGE, (np.arange(70) % 6,), {"axis": 3}),
    "tile": Case("Tile", _IMAGE, (ints(1, 2, 1, 3),)),
    "upsample": Case("Upsample", _IMAGE, (np.float32([1, 1, 2, 2.5]),), {}, 9),
    "upsample linear opset 7": Case("Upsample", _IMAGE, (), {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, 7),
    "resize opset 10": Case("Resize", _IMAGE, (np.float32([1, 1, 2, 1]),), {}, 10),
    **{
        f"resize {mode} {coordinates} {rounding}": Case(
            "Resize",
            _IMAGE,
            (None, np.float32([1, 1, 1.7, 0.6])),
            {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding},
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for rounding in (
            ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil") if mode == "nearest" else ("floor",)
        )
    },
    "resize sizes": Case("Resize", _IMAGE, (None, None, ints(13, 2)), {"mode": "linear", "axes": [2, 3]}, 18),
    "resize axes": Case("Resize", _IMAGE, (None, np.float32([2, 3])), {"axes": [2, 3], "mode": "cubic"}, 18),
    "resize exclude_outside": Case(
        "Resize",
        _IMAGE,
        (None, np.float32([1, 1, 0.8, 2])),
        {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    ),
    "dropout": Case("Dropout", _IMAGE, (), {"ratio": 0.4}, 11),
    "dropout opset 13": Case("Dropout", _IMAGE, (np.float32(0.4), np.array(False)), {}, 13),
    "identity": Case("Identity", _IMAGE),
    "flatten": Case("Flatten", _IMAGE),
    "flatten axis": Case("Flatten", _IMAGE, (), {"axis": -3}),
    "reshape to rows": Case("Reshape", _IMAGE, (ints(0, -1),)),
    "reshape to channels": Case("Reshape", _IMAGE, (ints(-1, 4, 42),)),
    "reshape zeros": Case("Reshape", _IMAGE, (ints(0, 0, -1),)),
    "transpose": Case("Transpose", _IMAGE, (), {"perm": [0, 2, 3, 1]}),
    "squeeze opset 11": Case("Squeeze", (4, 1, 1), (), {"axes": [2, 3]}, 11),
    "squeeze": Case("Squeeze", (4, 1, 1), (ints(-1),)),
    "unsqueeze opset 11": Case("Unsqueeze", (4,), (), {"axes": [2, 3]}, 11),
    "unsqueeze": Case("Unsqueeze", (4, 5), (ints(-1, 1),)),
    "concat": Case("Concat", _IMAGE, (), {"axis": -3}),
    "pad opset 10": Case("Pad", _IMAGE, (), {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}, 10),
    "pad": Case("Pad", _IMAGE, (ints(0, 0, 0, 1, 0, 0, 2, 0),)),
    "pad edge": Case("Pad", _IMAGE, (ints(0, 0, 2, 1, 0, 0, 0, 1),), {"mode": "edge"}),
    "pad reflect": Case("Pad", _IMAGE, (ints(0, 0, 1, 2, 0, 0, 0, 1),), {"mode": "reflect"}),
    "pad reflect opset 10": Case("Pad", _IMAGE, (), {"mode": "reflect", "pads": [0, 0, 1, 0, 0, 0, 2, 0]}, 10),
    "pad negative": Case("Pad", _IMAGE, (ints(0, 0, -1, 2, 0, 0, 0, -3),)),
    "pad channels": Case("Pad", _IMAGE, (ints(0, 1, 0, 0, 0, 2, 0, 0), np.float32(2))),
    "pad rank 2": Case("Pad", (5,), (ints(0, 1, 0, 2),)),
    "pad rank 3": Case("Pad", (5, 3), (ints(0, 1, 0, 0, -2, 2),)),
    "pad axes": Case("Pad", _IMAGE, (ints(1, -1, 2, 1), None, ints(-2, 3)), {}, 18),
    "pad axes reflect": Case("Pad", _IMAGE, (ints(1, 2), None, ints(3)), {"mode": "reflect"}, 19),
    "pad nothing": Case("Pad", _IMAGE, (ints(0, 0, 0, 0, 0, 0, 0, 0),), {"mode": "reflect"}),
    "pad value": Case("Pad", _IMAGE, (ints(0, 0, 0, 1, 0, 0, 2, 0), np.float32(-1))),
}


@pytest.mark.parametrize("name", EQUAL)
def test_operator_equals_onnx_runtime(name: str, tmp_path: Path) -> None:
    case = EQUAL[name]
    path = saved(case.model(), tmp_path)
    module = import_onnx(path)
    assert not module.training
    for batch in (1, 5):
        x = floats(batch, *case.shape, seed=batch)
        assert_equal(run(module, x), as_rows(onnx_runtime(path, x)[0]))
    fx.symbolic_trace(module)  # where that fails, conversion is by torch.export, which prints a trace


@pytest.mark.parametrize("name", EQUAL)
def test_operator_with_fixed_batch_takes_any(name: str, tmp_path: Path) -> None:
    case = EQUAL[name]
    path = saved(case.model(batch=1), tmp_path)
    x = floats(3, *case.shape)
    assert_equal(run(import_onnx(path), x), as_rows(onnx_runtime(path, x, rows=True)[0]))


def test_every_operator_is_tested() -> None:
    tested = {case.op for case in EQUAL.values()}
    tested |= {"Expand", "Split", "Sqrt", "Log"}  # in test_onnx_import.py and test_onnx_graphs.py
    assert tested == OPERATORS.keys()


REFUSED = {
    "unknown operator": (
        Case("Det", (4, 4)),
        r"Det node 'the_node': operator Det is not supported; supported: Abs, Add, ",
    ),
    "flatten all": (Case("Flatten", _IMAGE, (), {"axis": 0}), "an axis behind the batch, got axis 0 of rank 4"),
    "flatten late": (
        Case("Flatten", _IMAGE, (), {"axis": 2}),
        r"a row for each image; 'y' is \[4, 42\] for a batch of 1",
    ),
    "reshape mixes the batch": (Case("Reshape", _IMAGE, (ints(-1, 42),)), r"'y' is \[4, 42\] for a batch of 1"),
    "transpose twice the same": (Case("Transpose", (5, 4), (), {"perm": [0, 1, 1]}), "Transpose"),
    "transpose": (Case("Transpose", (5,), (), {"perm": [1, 0]}), "a row for each image"),
    "unsqueeze batch": (Case("Unsqueeze", (4,), (ints(0),)), "a row for each image"),
    "concat constant rank": (Case("Concat", (2, 5), (floats(2, 5),), {"axis": 1}), "Concat"),
    "pad batch": (Case("Pad", _IMAGE, (ints(1, 0, 0, 0, 0, 0, 0, 0),)), "an axis other than the batch"),
    "pad wrap": (
        Case("Pad", _IMAGE, (ints(0, 0, 1, 1, 0, 0, 1, 1),), {"mode": "wrap"}, 19),
        "reflect or edge, got wrap",
    ),
    "pad all away": (Case("Pad", _IMAGE, (ints(0, 0, -4, 0, 0, 0, -3, 0),)), "the_node|Pad"),
    "reflect channels": (
        Case("Pad", _IMAGE, (ints(0, 1, 0, 0, 0, 0, 0, 0),), {"mode": "reflect"}),
        "the pads of images",
    ),
    "slice batch": (Case("Slice", _IMAGE, (ints(1), ints(2), ints(0))), "an axis other than the batch"),
    "slice backwards": (Case("Slice", _IMAGE, (ints(-1), ints(-5), ints(1), ints(-1))), "steps of 1 or more, got -1"),
    "gather batch": (Case("Gather", _IMAGE, (ints(0),)), "an axis other than the batch"),
    "gather outside": (Case("Gather", _IMAGE, (ints(4),), {"axis": 1}), "Gather"),
    "tile batch": (Case("Tile", (5,), (ints(2, 1),)), "the batch to stay as it is"),
    "cast": (Case("Cast", _IMAGE, (), {"to": 7}), "Cast"),
    "layer norm batch": (Case("LayerNormalization", (5,), (positive(5),), {"axis": 0}), "an axis other than the batch"),
    "lp norm batch": (Case("LpNormalization", (5,), (), {"axis": 0}), "an axis other than the batch"),
    "matmul batch": (Case("MatMul", (4,), (floats(3, 1),), x_at=1), "matrices, one or more for each image"),
    "resize channels": (Case("Resize", _IMAGE, (None, np.float32([1, 2, 2, 2]))), "channels to stay"),
    "resize to a giant": (
        Case("Resize", (1, 300, 1), (None, None, ints(10_000_000, 1)), {"axes": [2, 3], "mode": "linear"}, 18),
        "tensors of at most .* bytes together",
    ),
    "resize crop": (
        Case(
            "Resize",
            _IMAGE,
            (np.float32([0, 0, 0, 0, 1, 1, 1, 1]), np.float32([1, 1, 2, 2])),
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
        ),
        "half_pixel and the like, got tf_crop_and_resize",
    ),
    "resize antialias": (
        Case("Resize", _IMAGE, (None, np.float32([1, 1, 0.5, 0.5])), {"mode": "linear", "antialias": 1}, 18),
        "no antialias",
    ),
    "conv 1d": (Case("Conv", (4, 7), (floats(5, 4, 3),)), "Conv node 'the_node': expected a 2-d convolution"),
    "conv channels": (Case("Conv", _IMAGE, (floats(5, 3, 3, 3),)), "expected 3 along axis 1, got 4"),
    "conv groups": (Case("Conv", _IMAGE, (floats(5, 2, 3, 3),), {"group": 2}), "groups that divide 5, got 2"),
    "conv kernel_shape": (Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"kernel_shape": [1, 1]}), "kernel_shape"),
    "conv stride": (Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"strides": [0, 1]}), "the_node|[Ss]tride"),
    "conv pads": (Case("Conv", _IMAGE, (floats(5, 4, 3, 3),), {"pads": [-1, 0, 0, 0]}), "the_node.*pads"),
    "conv bias": (Case("Conv", _IMAGE, (floats(5, 4, 3, 3), floats(4))), "5 numbers as input 2"),
    "norm training": (Case("BatchNormalization", _IMAGE, _NORM, {"spatial": 0}, 8), "one mean per channel"),
    "norm length": (Case("BatchNormalization", _IMAGE, (*_NORM[:3], floats(3))), "BatchNormalization"),
    "prelu last axis": (Case("PRelu", _IMAGE, (floats(6),)), r"one slope or one per channel, got shape \[6\]"),
    "prelu channels": (Case("PRelu", _IMAGE, (floats(5, 1, 1),)), "PRelu"),
    "prelu map": (Case("PRelu", _IMAGE, (floats(4, 7, 6),)), "one slope or one per channel"),
    "softmax opset 11": (Case("Softmax", (3, 5), (), {"axis": 1}, 11), "the last axis in opset 11"),
    "softmax batch": (Case("Softmax", (3, 5), (), {"axis": 0}), "an axis other than the batch"),
    "constant with a batch": (Case("Add", (5,), (floats(2, 5),)), "without a batch"),
    "constant of higher rank": (Case("Add", (5,), (floats(1, 1, 5),)), "a constant of rank 2 or less"),
    "reshape to another batch": (Case("Reshape", _IMAGE, (ints(2, -1),)), r"keeps the batch \(1\), got \[2, 84\]"),
    "gemm transA": (Case("Gemm", (6,), (floats(1, 5),), {"transA": 1}), "transA 0"),
    "gemm bias": (Case("Gemm", (6,), (floats(6, 5), floats(1, 1, 5))), "Gemm"),
    "matmul order": (Case("MatMul", (6,), (floats(5, 4),), x_at=1), "MatMul"),
    "average pool dilation": (
        Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 2], "dilations": [2, 2]}, 19),
        "no dilation",
    ),
    "mean of the batch": (Case("ReduceMean", _IMAGE, (), {"axes": [0]}, 17), "an axis other than the batch"),
    "mean of all": (Case("ReduceMean", _IMAGE), "without them the batch is reduced too"),
    "dropout training": (Case("Dropout", _IMAGE, (np.float32(0.4), np.array(True))), "training_mode false"),
    "squeeze batch": (Case("Squeeze", (4, 1), (ints(0),)), "an axis other than the batch"),
    "squeeze all": (Case("Squeeze", (4, 1)), "without them a batch of 1 is squeezed too"),
    "concat batch": (Case("Concat", _IMAGE, (), {"axis": 0}), "an axis other than the batch"),
    "old opset": (Case("Relu", _IMAGE, (), {}, 6), "expected opset 7 or later, the file has 6"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    assert_refused(saved(case.model(), tmp_path), message)
