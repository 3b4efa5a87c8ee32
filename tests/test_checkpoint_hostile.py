"""Files that are damaged, something else, or meant to do harm: refused in one line, and never executed."""

from __future__ import annotations

import argparse
import gzip
import os
import pickle
import sys
import time
import tracemalloc
import types
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import layouts
import numpy as np
import pytest
import torch
from onnx import helper
from onnx_files import make_model
from safetensors.torch import save_file
from torch import nn

from prefiqs_ext.models import load


class Payload:
    """Runs a command when unpickled by a careless reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


class _Numbers(NamedTuple):
    magic: int = 0x1950A86A20F9469CFC6C
    protocol: int = 1001


def write_pickles(path: Path, *objects: object, protocol: int = 2) -> None:
    with path.open("wb") as file:
        for each in objects:
            pickle.dump(each, file, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "old", "pickle", "old, by hand", "keys, by hand", "nested", "key"])
def test_a_malicious_pickle_is_refused_and_not_run(form: str, protocol: int, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pth"
    payload = Payload(mark)
    if form in ("zip", "old"):
        torch.save(
            {"state_dict": payload}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip"
        )
    elif form in ("nested", "key"):
        more = {"x": [payload]} if form == "nested" else {("x", payload): 1}
        torch.save({"layer1.0.conv1.weight": torch.zeros(3), **more}, path, pickle_protocol=protocol)
    elif form == "pickle":
        write_pickles(path, payload, protocol=protocol)
    elif form == "old, by hand":
        write_pickles(path, *_Numbers(), {}, payload, [], protocol=protocol)
    else:
        write_pickles(path, *_Numbers(), {}, {"layer1.0.conv1.weight": 1}, payload, protocol=protocol)
    with pytest.raises(ValueError, match=r"for safety|damaged") as error:
        load(path, "arcface")
    assert "\n" not in str(error.value)
    assert not mark.exists()
    careless = path.read_bytes() if form == "pickle" else None
    if careless is not None:  # the payload is one: the test can fail
        pickle.loads(careless)
        assert mark.exists()


GARBAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "this one is empty: get it again"),
    "html": (
        b"\n<!DOCTYPE html><html><body>404</body></html>",
        "this one is an HTML page, as a failed download leaves",
    ),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 174000000\n",
        "this one is a Git LFS pointer, which stands for the file: get the file by `git lfs pull`",
    ),
    "json": (b'{"message": "Not Found"}', "this one is JSON text"),
    "gzip": (gzip.compress(bytes(1000)), "this one is an archive: unpack it"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "this one is an archive: unpack it"),
    "keras": (
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        "this one is an HDF5 file, as Keras writes: export",
    ),
    "zeros": (bytes(1000), ""),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".dat", ".onnx"])
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(what: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    content, message = GARBAGE[what]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot (load|import) {path}: .*{message}") as error:
        load(path, "arcface")
    assert "\n" not in str(error.value)


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"pt2")


def write_other(kind: str, path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    if kind == "TorchScript":
        torch.jit.script(network).save(str(path))
    elif kind == "torch.export":
        write_zip(path, "model/archive_format", "model/models/model.json")  # what torch.export.save begins with
    elif kind == "an archive":
        write_zip(path, "models/backbone.pth")
    elif kind == "safetensors":
        save_file(network.state_dict(), path)
    elif kind == "ONNX":
        path.write_bytes(make_model([helper.make_node("Relu", ["x"], ["y"])], ("n", 4), {}).SerializeToString())
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "PyTorch")


@pytest.mark.filterwarnings("ignore")  # that TorchScript is old
@pytest.mark.parametrize(
    "kind", ["TorchScript", "torch.export", "an archive", "safetensors", "ONNX", "PyTorch", "PyTorch, old"]
)
def test_a_file_of_another_kind_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.onnx" if "PyTorch" in kind else "model.pth")
    write_other(kind, path)
    with pytest.raises(ValueError, match=rf"this one is (of |an? )?{kind.split(',')[0]}\b") as error:
        load(path, "arcface")
    assert "\n" not in str(error.value)


def lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class that is a key in checkpoints of PyTorch Lightning before 1.5."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(module, "ModelCheckpoint", callback, raising=False)
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return callback


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_classes_as_keys_and_later_protocols(
    protocol: int, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = layouts.mobilefacenet_state()
    state["linear.weight"] = state["linear.weight"].t().contiguous().t()  # strides are kept
    state["conv1.conv.weight"] = torch.stack([state["conv1.conv.weight"]] * 2)[1]  # a part of its storage
    content = {
        "callbacks": {lightning(monkeypatch): {"best_model_score": torch.tensor(0.9)}},
        "lr_schedulers": [{"milestones": Counter([12, 20])}],
        "hyper_parameters": argparse.Namespace(arch="ir_101", best=np.float64(0.9), seen={1, 2}),
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}
        | {"head.kernel": torch.zeros(len(state["linear.weight"]), 9)},
    }
    path = tmp_path / "adaface.ckpt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    monkeypatch.undo()  # the class is no more
    with pytest.warns(UserWarning, match="left out, a classification head: head.kernel"):
        network, _ = load(path, "facexzoo")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


class Call:
    """Calls a class when unpickled by a careless reader."""

    def __init__(self, called: type) -> None:
        self.called = called

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return self.called, ()


@pytest.mark.parametrize("how", ["called", "made"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_class_is_a_key_and_no_more(how: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = lightning(monkeypatch)
    content = {"state_dict": layouts.mobilefacenet_state(), "x": Call(callback) if how == "called" else callback()}
    torch.save(content, tmp_path / "evil.ckpt", pickle_protocol=protocol)
    with pytest.raises(
        ValueError, match=r"for safety \(in its pickle: it calls pytorch_lightning\.\S*\.ModelCheckpoint, which is not"
    ):
        load(tmp_path / "evil.ckpt", "facexzoo")


@pytest.mark.parametrize(
    "what", [b"cposix\nsystem\n", b"ctorch.nn.modules.linear\nLinear\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
)
def test_attributes_of_what_a_pickle_names_are_not_set(what: bytes, tmp_path: Path) -> None:
    """By its opcode BUILD, with a dict of attributes and of slots."""
    path = tmp_path / "evil.pth"
    write_pickles(path, *_Numbers(), {})
    with path.open("ab") as file:
        file.write(b"\x80\x02" + what + b"}}X\x0c\0\0\0__defaults__)s\x86b.\x80\x02].")
    with pytest.raises(ValueError, match="cannot load") as error:
        load(path, "arcface")
    assert "\n" not in str(error.value)


def test_a_state_dict_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 3}
    content["state_dict"] = content
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="expected a state dict, the file holds 'epoch', 'state_dict'"):
        load(tmp_path / "model.pth", "arcface")


@pytest.mark.parametrize("what", ["key", "pairs", "storage"])
def test_tuples_in_tuples_without_end_are_not_hashed(what: str, tmp_path: Path) -> None:
    """Pickled by hand, for pickle would hash them too."""
    tuples = b")" + b"q\x00h\x00\x86" * 60
    content = {
        "key": b"}" + tuples + b"K\x01s",
        "pairs": b"ccollections\nOrderedDict\n]" + tuples + b"K\x01\x86a\x85R",
        "storage": b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + tuples + b"X\x03\0\0\0cpuK\x01tQ",
    }[what]
    path = tmp_path / "model.pth"
    write_pickles(path, *_Numbers(), {})
    with path.open("ab") as file:
        # First a name that torch.load refuses, before it hashes anything.
        file.write(b"\x80\x02cunknown\nname\n" + content + b"\x86.\x80\x02].")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"a tuple as a key|a storage without a plain key"):
        load(path, "arcface")
    assert time.monotonic() - start < 5  # seconds, where hashing would take years


def test_a_long_name_that_grows(tmp_path: Path) -> None:
    inside = nn.Sequential()
    inside._modules["x" * 100_000] = inside
    torch.save(inside, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="names of more than 1000 letters"):
        load(tmp_path / "model.pth", "arcface")


def test_protocol_0_is_named(tmp_path: Path) -> None:
    torch.save(layouts.mobilefacenet_state(), tmp_path / "model.pth", pickle_protocol=0)
    with pytest.raises(ValueError, match="of pickle protocol 0: save it again without naming one"):
        load(tmp_path / "model.pth", "facexzoo")


def test_modules_in_modules_without_end(tmp_path: Path) -> None:
    """A network of 2^60 modules, in some bytes."""
    inside: nn.Module = nn.ReLU()
    for _ in range(60):
        inside = nn.Sequential(inside, inside)
    torch.save(inside, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="more than 100000 modules"):
        load(tmp_path / "model.pth", "arcface")


@pytest.mark.parametrize("kind", ["pth", "old", "safetensors"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    state = layouts.mobilefacenet_state()
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    data = path.read_bytes()
    for size in range(1, len(data), len(data) // 11):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="cannot load") as error:
            load(path, "facexzoo")
        assert "\n" not in str(error.value)


def test_a_damaged_archive(tmp_path: Path) -> None:
    """Any byte of its directory."""
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2)}, path)
    data = path.read_bytes()
    for position in range(data.index(b"PK\x01\x02"), len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        with pytest.raises(ValueError, match="cannot load") as error:
            load(path, "arcface")
        assert "\n" not in str(error.value)


def test_a_zip_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({**layouts.mobilefacenet_state(), "more": torch.zeros(2_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"expected an archive that is not compressed; save it again with torch\.save"):
        load(path, "arcface")


def test_a_small_pickle_that_asks_for_much_memory(tmp_path: Path) -> None:
    """A memo index of 2^23: the unpickler in C makes room for all entries below twice that, 128 MB."""
    path = tmp_path / "memo.pth"
    write_pickles(path, *_Numbers(), {})
    with path.open("ab") as file:
        file.write(b"\x80\x02]r\x00\x00\x80\x00ctorch.nn.parallel.data_parallel\nDataParallel\n.")
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged"):
        load(path, "arcface")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
