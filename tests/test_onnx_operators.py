"""Every operator of the ONNX importer, in every variant it knows, against ONNX Runtime; and those it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_files import Case, assert_equal, assert_refused, floats, ints, onnx_runtime, positive, run, saved
from torch import fx

from prefiqs_ext.models import import_onnx
from prefiqs_ext.models.onnx_operators import OPERATORS

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
    "global average pool": Case("GlobalAveragePool", _IMAGE),
    "global max pool": Case("GlobalMaxPool", _IMAGE),
    "mean opset 17": Case("ReduceMean", _IMAGE, (), {"axes": [2, 3]}, 17),
    "mean opset 18": Case("ReduceMean", _IMAGE, (ints(-1, -2),), {"keepdims": 0}, 18),
    "norm l2": Case("ReduceL2", (5,), (), {"axes": [-1]}, 17),
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
        assert_equal(run(module, x), onnx_runtime(path, x)[0])
    fx.symbolic_trace(module)  # where that fails, conversion is by torch.export, which prints a trace


@pytest.mark.parametrize("name", EQUAL)
def test_operator_with_fixed_batch_takes_any(name: str, tmp_path: Path) -> None:
    case = EQUAL[name]
    path = saved(case.model(batch=1), tmp_path)
    x = floats(3, *case.shape)
    assert_equal(run(import_onnx(path), x), onnx_runtime(path, x, rows=True)[0])


def test_every_operator_is_tested() -> None:
    tested = {case.op for case in EQUAL.values()} | {"Expand"}  # in test_shape_chain_is_not_needed
    assert tested == OPERATORS.keys()


REFUSED = {
    "unknown operator": (
        Case("Selu", _IMAGE),
        r"Selu node 'the_node': operator Selu is not supported; supported: Add, ",
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
    "reshape mixes the batch": (Case("Reshape", _IMAGE, (ints(-1, 42),)), r"keeps the batch \(1\), got \[4, 42\]"),
    "gemm alpha": (Case("Gemm", (6,), (floats(6, 5),), {"alpha": 2.0}), "alpha and beta of 1"),
    "gemm transA": (Case("Gemm", (6,), (floats(1, 5),), {"transA": 1}), "transA 0"),
    "gemm bias": (Case("Gemm", (6,), (floats(6, 5), floats(1, 1, 5))), "Gemm"),
    "matmul order": (Case("MatMul", (6,), (floats(5, 4),), x_at=1), "MatMul"),
    "average pool ceil": (Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 2], "ceil_mode": 1}), "no ceil_mode"),
    "average pool dilation": (
        Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 2], "dilations": [2, 2]}, 19),
        "no dilation",
    ),
    "average pool uneven": (
        Case("AveragePool", _IMAGE, (), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        "pads equal",
    ),
    "max pool ceil uneven": (
        Case("MaxPool", _IMAGE, (), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
        "pads equal",
    ),
    "mean of the batch": (Case("ReduceMean", _IMAGE, (), {"axes": [0]}, 17), "an axis other than the batch"),
    "mean of all": (Case("ReduceMean", _IMAGE), "without them the batch is reduced too"),
    "dropout training": (Case("Dropout", _IMAGE, (np.float32(0.4), np.array(True))), "training_mode false"),
    "flatten all": (Case("Flatten", _IMAGE, (), {"axis": 0}), "axis 1, which keeps the batch, got 0"),
    "flatten late": (Case("Flatten", _IMAGE, (), {"axis": 2}), "axis 1, which keeps the batch, got 2"),
    "transpose": (Case("Transpose", (5,), (), {"perm": [1, 0]}), "the batch to stay first"),
    "transpose default": (Case("Transpose", (5,)), "the batch to stay first"),
    "squeeze batch": (Case("Squeeze", (4, 1), (ints(0),)), "an axis other than the batch"),
    "squeeze all": (Case("Squeeze", (4, 1)), "without them a batch of 1 is squeezed too"),
    "unsqueeze batch": (Case("Unsqueeze", (4,), (ints(0),)), "an axis other than the batch"),
    "concat batch": (Case("Concat", _IMAGE, (), {"axis": 0}), "an axis other than the batch"),
    "concat constant": (Case("Concat", (5,), (floats(1, 5),), {"axis": 1}), "depend on the network's input"),
    "pad channels": (Case("Pad", _IMAGE, (ints(0, 1, 0, 0, 0, 0, 0, 0),)), "no pads of the batch or the channels"),
    "pad reflect": (Case("Pad", _IMAGE, (ints(0, 0, 1, 1, 0, 0, 1, 1),), {"mode": "reflect"}), "mode constant"),
    "pad negative": (Case("Pad", _IMAGE, (ints(0, 0, -1, 0, 0, 0, 0, 0),)), "pads of 0 or more"),
    "old opset": (Case("Relu", _IMAGE, (), {}, 6), "expected opset 7 or later, the file has 6"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    assert_refused(saved(case.model(), tmp_path), message)
