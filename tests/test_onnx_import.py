"""Whole ONNX files: their graphs and names, PyTorch's own exports, the real network, and files wrong on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import (
    Case,
    assert_equal,
    assert_refused,
    floats,
    ints,
    make_model,
    onnx_runtime,
    positive,
    run,
    saved,
)
from torch import fx, nn

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, MissingFileError
from prefiqs_ext.models import import_onnx
from prefiqs_ext.models.onnx_import import importer

_IMAGE = (4, 7, 6)
_CONV = Case("Conv", _IMAGE, (floats(5, 4, 3, 3), floats(5)), {"pads": [0, 1, 2, 0]})


@pytest.mark.parametrize(("shape", "expected"), [([1, -1], (5, 168)), ([1, 168], (5, 168)), ([1, 4, -1], (5, 4, 42))])
def test_constant_batch_of_one_in_reshape_becomes_any(
    shape: list[int], expected: tuple[int, ...], tmp_path: Path
) -> None:
    module = import_onnx(saved(Case("Reshape", _IMAGE, (ints(*shape),)).model(), tmp_path))
    x = floats(5, *_IMAGE)
    np.testing.assert_array_equal(run(module, x), x.reshape(expected))


def test_open_height_and_width(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    ]
    path = saved(make_model(nodes, ("n", 3, "h", "w"), {"w": floats(4, 3, 3, 3)}), tmp_path)
    module = import_onnx(path)
    for height, width in ((8, 9), (1, 2)):
        x = floats(2, 3, height, width)
        assert_equal(run(module, x), onnx_runtime(path, x)[0])


def test_input_affine_stays_in_the_graph_as_numbers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Div", ["b", "std"], ["y"]),
    ]
    constants = {"mean": np.float32([127.5]), "scale": np.float32([0.0078125]), "std": positive(3, 1, 1)}
    module = import_onnx(saved(make_model(nodes, (1, 3, 4, 4), constants), tmp_path))
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    assert [node.args[1] for node in calls[:2]] == [127.5, 0.0078125]
    assert isinstance(calls[2].args[1], fx.Node)
    assert calls[2].args[1].op == "get_attr"
    assert {name: tuple(buffer.shape) for name, buffer in module.named_buffers()} == {"std": (1, 3, 1, 1)}


def test_constants_made_by_nodes_and_weights_used_twice(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(floats(4, 36))),
        helper.make_node("Reshape", ["k", "kernel_shape"], ["w"]),
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Conv", ["x", "w"], ["a"], name="a/b"),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="a b"),
        helper.make_node("Unsqueeze", ["m"], ["m3"], axes=[0]),
        helper.make_node("Squeeze", ["m3"], ["m2"], axes=[0]),
        helper.make_node("Transpose", ["m2"], ["mt"], perm=[1, 0]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "mt"], ["y"]),
    ]
    constants = {"kernel_shape": ints(4, 4, 3, 3), "m": floats(5, 24)}
    path = saved(make_model(nodes, ("n", 4, 7, 6), constants, opset=11), tmp_path)
    module, x = import_onnx(path), floats(2, 4, 7, 6)
    assert_equal(run(module, x), onnx_runtime(path, x)[0])
    assert {"a_b", "a_b_1"} <= {name for name, _ in module.named_modules()}


def test_shape_chain_is_not_needed(tmp_path: Path) -> None:
    """x.view(x.size(0), -1) and x.expand_as: the nodes that compute the shape are not imported."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("ReduceL2", ["r"], ["norm"], axes=[1], keepdims=1),
        helper.make_node("Shape", ["r"], ["rs"]),
        helper.make_node("Expand", ["norm", "rs"], ["e"]),
        helper.make_node("Div", ["r", "e"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axes": ints(0), "rest": ints(-1)}
    path = saved(make_model(nodes, ("n", *_IMAGE), {k: np.asarray(v) for k, v in constants.items()}), tmp_path)
    module = import_onnx(path)
    for batch in (1, 5):
        x = floats(batch, *_IMAGE)
        assert_equal(run(module, x), onnx_runtime(path, x)[0])


def test_names_come_from_weights_then_nodes_and_are_always_valid(tmp_path: Path) -> None:
    names = ["forward", "class", "a b; import os", "/layer/0.conv/Conv", "", "graph", "layer1.0.conv1", "1.x"]
    nodes, constants, value = [], {}, "x"
    for i, name in enumerate(names):
        weight = "layer1.0.conv1.weight" if i == 6 else "layer1.weight" if i == 7 else f"w{i}"
        constants[weight] = floats(3, 3, 1, 1, seed=i)
        nodes.append(helper.make_node("Conv", [value, weight], [f"v{i}"], name=name))
        value = f"v{i}"
    path = saved(make_model(nodes, ("n", 3, 2, 2), constants, outputs=(value,)), tmp_path)
    module, x = import_onnx(path), floats(2, 3, 2, 2)
    assert_equal(run(module, x), onnx_runtime(path, x)[0])
    convolutions = [name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)]
    expected = [
        "forward_",
        "class_",
        "a_b_import_os",
        "layer_0_conv_Conv",
        "v4",
        "graph_",
        "layer1.0.conv1",
        "layer1_1",
    ]
    assert set(convolutions) == set(expected)
    assert set(module.state_dict()) == {f"{name}.weight" for name in expected}


def test_import_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = saved(_CONV.model(), tmp_path)
    state = torch.random.get_rng_state()
    import_onnx(path)
    assert torch.equal(state, torch.random.get_rng_state())


# --- the real network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["noise", "crops"])
def test_sface_equals_onnx_runtime(images: str, sface_file: Path, request: pytest.FixtureRequest) -> None:
    if images == "noise":
        x = np.random.default_rng(0).integers(0, 256, (5, 3, 112, 112)).astype(np.float32)
    else:
        x = request.getfixturevalue("crops")[:20].float().numpy()
    module = import_onnx(sface_file)
    expected = onnx_runtime(sface_file, x, rows=True)[0]
    assert_equal(run(module, x[:1]), expected[:1])
    for start in range(0, len(x), 5):
        assert_equal(run(module, x[start : start + 5]), expected[start : start + 5])


def test_sface_is_made_of_ordinary_modules_under_their_names(sface_file: Path) -> None:
    module = import_onnx(sface_file)
    kinds = {type(child) for _, child in module.named_children()}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.PReLU, nn.Dropout, nn.Flatten, nn.Linear, nn.BatchNorm1d}
    convolutions = [child for child in module.modules() if isinstance(child, nn.Conv2d)]
    assert len(convolutions) == 27
    assert sum(convolution.weight.numel() for convolution in convolutions) == 3_185_088
    stem = module.get_submodule("conv_1_batchnorm")
    assert isinstance(stem, nn.BatchNorm2d)
    assert stem.eps == pytest.approx(1e-3)
    numbers = [node.args[1] for node in module.graph.nodes if node.op == "call_function"]
    assert numbers == [127.5, 0.0078125]


def test_sface_cut_short_is_refused(sface_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(sface_file.read_bytes()[:-1])
    assert_refused(path, "truncated, damaged or something else")


def _with(change: Any) -> onnx.ModelProto:
    model = _CONV.model()
    change(model)
    return model


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))


def _control_flow(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [onnx.ValueInfoProto(name="z")])
    model.graph.node.append(helper.make_node("If", ["x"], ["w"], name="gate", then_branch=branch, else_branch=branch))


def _huge_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def _wrong_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"\0" * 12


def _second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3]))


def _half(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16


def _no_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _undefined_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _function(model: onnx.ModelProto) -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], [relu], [helper.make_opsetid("", 17)]))


def _constant_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "c0"


def _half_weights(model: onnx.ModelProto) -> None:
    halves = helper.make_tensor("c0", TensorProto.BFLOAT16, (5, 4, 3, 3), floats(5, 4, 3, 3).ravel())
    model.graph.initializer[0].CopyFrom(halves)


def _weights_from_input(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["c0"]))


def _sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(floats(1), "s")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(ints(0)), [4]))


def _unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 125


HOSTILE = {
    "unknown type": (_unknown_type, "the data of 'c0' have the unsupported ONNX type 125"),
    "external data": (_external, "the data of 'c0' are in another file"),
    "external constant": (_external_constant, "the data of 'hidden' are in another file"),
    "control flow": (_control_flow, "If node 'gate': control flow is not supported"),
    "huge dims": (_huge_dims, "cannot import"),
    "wrong size": (_wrong_size, "cannot import"),
    "second input": (_second_input, r"expected one input, the file has 2: \['x', 'other'\]"),
    "half input": (_half, "BFLOAT16.*export the network in float32"),
    "no shape": (_no_shape, "'shape' of 'type' is required"),
    "undefined input": (_undefined_input, "nowhere"),
    "cycle": (_cycle, "cannot import"),
    "foreign domain": (_foreign, "operator com.microsoft.Conv is not supported"),
    "function": (_function, "model-local function 'Mine'"),
    "constant output": (_constant_output, "cannot import"),
    "half weights": (_half_weights, "BFLOAT16: export the network in float32"),
    "weights from input": (_weights_from_input, "expected a constant as input 1"),
    "sparse": (_sparse, "sparse initialisers"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file(change: Any, message: str, tmp_path: Path) -> None:
    assert_refused(saved(_with(change), tmp_path), message)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    data = _CONV.model().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert_refused(path, "cannot import")


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    data = np.frombuffer(_CONV.model().SerializeToString(), dtype=np.uint8)
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    refused = 0
    for _ in range(300):
        damaged = data.copy()
        at = generator.integers(0, len(data), 3)
        damaged[at] = generator.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        message = _refusal(path)
        refused += bool(message)
        assert "\n" not in message
    assert refused > 30  # the rest hit the weights or names, where damage cannot be seen


def _refusal(path: Path) -> str:
    try:
        import_onnx(path)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not an ONNX file at all\n" * 50])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    assert_refused(path, "expected an ONNX")


def test_too_large_a_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MAX_ONNX_BYTES", 100)
    path = tmp_path / "large.onnx"
    path.write_bytes(b"\0" * 101)
    with pytest.raises(FileFormatError, match="expected at most 100 bytes, got 101"):
        import_onnx(path)


def test_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="expected a file, got a folder"):
        import_onnx(tmp_path)
    with pytest.raises(MissingFileError, match=r"cannot read .*none\.onnx \(No such file"):
        import_onnx(tmp_path / "none.onnx")
