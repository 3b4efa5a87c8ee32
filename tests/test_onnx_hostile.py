"""ONNX files with strange names, and files that ask for far more than they hold."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import assert_equal, assert_refused, floats, ints, make_model, onnx_runtime, run, saved

from prefiqs_ext.exceptions import FileFormatError, UnsupportedNetworkError
from prefiqs_ext.models import import_onnx
from prefiqs_ext.models.onnx_import.fields import charge_message
from prefiqs_ext.utils import budget

STRANGE = ("0", "112", "1x", "self", "class", "forward", "images", "torch", "a'b\"c", "\x1b[2J\n", "x" * 5000, "é")


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_may_be_anything(name: str, tmp_path: Path) -> None:
    """Of the input, of a node, of values between, of a weight and of one of two outputs."""
    nodes = [
        helper.make_node("Conv", [name, f"{name}.weight"], [f"{name}/1"], name=name),
        helper.make_node("Add", [f"{name}/1", f"{name}.bias"], [f"{name}/2"], name=f"{name}.{name}"),
        helper.make_node("Relu", [f"{name}/2"], [f"{name}/3"]),
        helper.make_node("Flatten", [f"{name}/3"], ["y"], name=f"{name}/{name}"),
    ]
    constants = {f"{name}.weight": floats(4, 3, 3, 3), f"{name}.bias": floats(1, 4, 1, 1)}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 6, 5])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48]),
            helper.make_tensor_value_info(f"{name}/3", TensorProto.FLOAT, ["n", 4, 4, 3]),
        ],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = saved(model, tmp_path)
    module, x = import_onnx(path), floats(2, 3, 6, 5)

    with torch.no_grad():
        got = module(torch.from_numpy(x))
    expected = onnx_runtime(path, x)
    assert list(got) == ["y", f"{name}/3"]
    for value, theirs in zip(got.values(), expected, strict=True):
        assert_equal(value.numpy(), theirs)


LONG = "\x1b[2J\n" + "n" * 1_000_000


@pytest.mark.parametrize("what", ["operator", "domain", "node", "attribute", "tensor", "input"])
def test_a_message_is_one_line_of_bounded_length(what: str, tmp_path: Path) -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"], name="relu")], ("n", 4))
    node = model.graph.node[0]
    if what == "operator":
        node.op_type = LONG
    elif what == "domain":
        node.domain = LONG
        model.opset_import.append(helper.make_opsetid(LONG, 1))
    elif what == "node":
        node.name, node.op_type = LONG, "Det"
    elif what == "attribute":
        node.attribute.append(helper.make_attribute(LONG, 1))
    elif what == "tensor":
        model.graph.initializer.append(TensorProto(name=LONG, data_type=TensorProto.INT8, dims=[1], raw_data=b"1"))
    else:
        model.graph.input.append(helper.make_tensor_value_info(LONG, TensorProto.FLOAT, [1]))
    path = saved(model, tmp_path)
    with pytest.raises((FileFormatError, UnsupportedNetworkError)) as error:
        import_onnx(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def chain(op: str, count: int, source: str) -> list[onnx.NodeProto]:
    names = [source, *(f"v{index}" for index in range(count - 1)), "k"]
    return [helper.make_node(op, [names[index]], [names[index + 1]]) for index in range(count)]


def write_copies(count: int) -> onnx.ModelProto:
    """One constant of 4.8 MB, which this many nodes copy."""
    nodes = [*chain("Identity", count, "c"), helper.make_node("Add", ["x", "k"], ["y"])]
    return make_model(nodes, (1, 1_200_000), {"c": floats(1, 1_200_000)})


def write_shared(count: int) -> onnx.ModelProto:
    """One weight of 2.4 MB, which this many layers share."""
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    nodes = [helper.make_node("Conv", [names[i], "c"], [names[i + 1]], pads=[1] * 4) for i in range(count)]
    return make_model(nodes, (1, 256, 4, 4), {"c": floats(256, 256, 3, 3) / 100})


def write_pads(pads: int) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "c"], ["y"], pads=[pads] * 4)
    return make_model([node], ("n", 3, 12, 12), {"c": floats(8, 3, 3, 3)})


def write_expand(side: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Expand", ["x", "c"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    return make_model(nodes, (1, 1, 1, 1), {"c": ints(1, 1, side, side)})


def write_nodes(count: int) -> onnx.ModelProto:
    return make_model([*chain("Relu", count, "x"), helper.make_node("Relu", ["k"], ["y"])], (1, 4))


AMPLIFIED = {
    "copies of a constant": (write_copies, 2, 1000, "expected tensors of at most"),
    "a shared weight": (write_shared, 3, 300, "expected tensors of at most"),
    "pads": (write_pads, 5, 8000, "expected a network that keeps at most"),
    "a map of any size": (write_expand, 5, 100_000, "expected a network that keeps at most"),
    "nodes": (write_nodes, 500, budget.MAX_NODES, "expected a graph of at most 20000 nodes, it has 20001"),
}


@pytest.mark.parametrize("what", AMPLIFIED)
def test_little_gives_the_right_value_and_much_is_refused(what: str, tmp_path: Path) -> None:
    write, little, much, message = AMPLIFIED[what]
    path = saved(write(little), tmp_path)
    declared = import_onnx(path).declared_input
    x = floats(1, *(size or 1 for size in declared[1:]))
    assert_equal(run(import_onnx(path), x), onnx_runtime(path, x)[0])
    path = saved(write(much), tmp_path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert_refused(path, message)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (1 << 20) + path.stat().st_size * 8 >> 10 << 10


def test_the_cost_is_that_of_one_image(tmp_path: Path) -> None:
    """A file that fixes a large batch computes no more for each of its images, but a map of any size is one."""
    nodes = [helper.make_node("Conv", ["x", "c"], ["y"], pads=[1] * 4)]
    path = saved(make_model(nodes, (64, 3, 112, 112), {"c": floats(64, 3, 3, 3)}), tmp_path)
    assert import_onnx(path).declared_input == (64, 3, 112, 112)
    nodes = [helper.make_node("Expand", ["c", "s"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])]
    constants = {"c": floats(1, 1, 1, 1), "s": ints(1, 1, 100_000, 100_000)}
    assert_refused(saved(make_model(nodes, (1 << 30, 1, 1, 1), constants), tmp_path), "keeps at most")


def test_empty_messages_are_counted_before_they_are_parsed(tmp_path: Path) -> None:
    """Five million empty nodes have 10 MB in a file and 2 GB in memory."""
    graph = b"\x0a\x00" * 5_000_000
    size = len(graph)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21])
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"\x08\x08\x3a" + length + graph)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(path, "expected at most 500000 parts, the file has more")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_counting_fields_sees_all_that_protobuf_sees() -> None:
    """Of a model with everything in it, against protobuf's own walk."""

    model = write_shared(3)
    model.graph.node[0].attribute.append(helper.make_attribute("s", ["a", "b", "c"]))
    model.metadata_props.add(key="k", value="v")

    def count(message: object) -> int:
        total = 0
        for field, value in message.ListFields():  # type: ignore[attr-defined]
            values = list(value) if hasattr(value, "append") else [value]
            packed = field.GetOptions().packed
            total += 1 if packed else len(values)
            total += sum(count(each) for each in values if field.message_type is not None)
        return total

    class Counter:
        parts = 0

        def charge_parts(self, number: int = 1) -> None:
            self.parts += number

    counter = Counter()
    charge_message(model.SerializeToString(), model.DESCRIPTOR, counter)  # type: ignore[arg-type]
    assert counter.parts == count(model)
