"""Checkpoints that ask for far more than they hold: refused in one line, soon, and in little memory."""

from __future__ import annotations

import pickle
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch
from torch import Tensor

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.models import load
from prefiqs_ext.utils import budget


def write(form: str, pickled: bytes, path: Path) -> None:
    """Writes a file of torch.save in either form, with this pickle and no storages."""
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickled)
            archive.writestr("x/byteorder", b"little")
        return
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join([*head, pickled, pickle.dumps([], 2)]))


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


MANY = 20_000
LONG_LIST = b"](" + b"K\x01" * MANY + b"eq\x010"
LONG_TUPLE = b"(" + b"K\x01" * MANY + b"tq\x010"
WRAPPER = b"}X\x0a\0\0\0state_dict"
HOSTILE = {
    "nested dictionaries": (WRAPPER * 5000 + b"}" + b"s" * 5000, "expected a state dict, the file holds"),
    "nested lists": (b"]" * 100_000 + b"a" * 99_999, "expected a state dict, the file holds a list"),
    "a state dict that holds itself": (b"}q\x01X\x0a\0\0\0state_dicth\x01s", "expected a state dict, the file holds"),
    "an ordered one that holds itself": (
        b"ccollections\nOrderedDict\n)Rq\x01X\x0a\0\0\0state_dicth\x01s",
        "expected a state dict, the file holds",
    ),
    "a key that takes years to hash": (b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s", "a tuple as a key"),
    "keys of one hash": (b"}\x8a\x09" + (13 * (2**61 - 1)).to_bytes(9, "little") + b"Ns", "more than 60 bits as a key"),
    "a frame of 2^63 + 1 bytes": (b"\x95" + number(2**63 + 1) + b"}", "damaged"),
    "bytes of 2^40": (b"\x96" + number(2**40), "damaged"),
    "bytes of 2^63 + 1": (b"\x8e" + number(2**63 + 1), "damaged"),
    "a list copied again and again": (
        LONG_LIST + b"ccollections\nOrderedDict\nq\x020" + b"h\x02h\x01\x85R0" * MANY + b"N",
        "damaged|at most 500000 parts",
    ),
    "arguments copied again and again": (
        LONG_TUPLE + b"ctorch.nn.modules.linear\nLinear\nq\x020" + b"h\x02h\x01R0" * MANY + b"N",
        "expected at most 500000 parts, the file has more",
    ),
    "attributes copied again and again": (
        b"}(" + b"".join(b"J" + struct.pack("<i", key) + b"N" for key in range(MANY)) + b"uq\x010"
        b"ctorch.nn.modules.linear\nLinear\n)Rq\x020" + b"h\x02h\x01b0" * MANY + b"N",
        "expected at most 500000 parts, the file has more",
    ),
    "names": (b"".join(b"cx\n%d\n0" % index for index in range(2000)) + b"N", "more than 1000 names of classes"),
    "opcodes": (b"N0" * 300_000 + b"N", "expected at most 500000 parts, the file has more"),
}


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle(what: str, form: str, tmp_path: Path) -> None:
    pickled, message = HOSTILE[what]
    path = tmp_path / "model.pth"
    write(form, b"\x80\x04" + pickled + b".", path)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileFormatError, match=message) as error:
        load(path, "arcface")
    assert str(error.value).isprintable()
    assert time.process_time() - start < 5  # seconds; the slowest takes half of one
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def make_state() -> dict[str, Tensor]:
    return layouts.ir_state((4,), adaface=True, affine=False, last=2)


def make_mobilefacenet() -> dict[str, Tensor]:
    return layouts.arcface_mobilefacenet_state((1, 1, 1, 1), scale=2, unit=1, last=2)


def test_views_of_one_number(tmp_path: Path) -> None:
    """They are numbers like others, as long as there are not far more of them than bytes in the file."""
    state, path = make_state(), tmp_path / "model.pth"
    state["body.0.res_layer.1.weight"] = torch.full((1,), 0.25).expand(state["body.0.res_layer.1.weight"].shape)
    torch.save(state, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, _ = load(path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    state |= {f"head.{index}.weight": torch.zeros(1).expand(64, 60_000) for index in range(100)}
    torch.save(state, path)
    assert path.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileFormatError, match=r"expected tensors of at most .* bytes together, the file declares more"):
        load(path, "adaface")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize("name", ["\x1b[2J\n" * 50, "a" * 5000, "é\u202e" * 9])
def test_names_in_messages(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name[:4]!r}\n.pth"
    for state in (
        {name: torch.zeros(2)},
        {**make_state(), name: torch.zeros(3, 3, 3)},
        {**make_state(), f"{name}.weight": torch.zeros(9, 64)},
        {f"{prefix}.{key}": value for prefix in (name, "b") for key, value in make_state().items()},
    ):
        torch.save(state, path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                load(path)
                texts = [str(warning.message) for warning in said]
                assert texts
            except FileFormatError as error:
                texts = [str(error)]
        assert all(text.isprintable() and len(text) < 1000 for text in texts)


@pytest.mark.parametrize(
    ("marker", "block", "others"),
    [
        ("layer1.0.conv1.weight", "layer1.{}.x", {}),
        ("body.0.res_layer.1.weight", "body.{}.x", {"body.0.res_layer.8.running_mean": (1,)}),
        ("conv_23.conv.conv.weight", "conv2_dw.model.{}.conv.x", {"conv1.conv.weight": (1, 3, 3, 3)}),
        ("conv_sep.layers.0.weight", "layers.1.layers.{}.layers.0.x", {"layers.0.layers.0.weight": (1, 3, 3, 3)}),
    ],
)
def test_blocks_are_counted_before_they_are_built(
    marker: str, block: str, others: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    state = {block.format(index): torch.zeros(1) for index in range(budget.MAX_BLOCKS + 1)}
    state |= {name: torch.zeros(shape) for name, shape in others.items()}
    torch.save({marker: torch.zeros(1), **state}, tmp_path / "model.pth")
    with pytest.raises(FileFormatError, match="expected at most 300 blocks of a kind, the file has 301"):
        load(tmp_path / "model.pth", "arcface")


@pytest.mark.parametrize(
    ("make", "name", "shape", "side"),
    [
        (make_state, "output_layer.3.weight", (64, 4 * 600**2), 1200),
        (make_mobilefacenet, "features.layers.0.layers.0.weight", (8, 1, 70, 70), 1120),
    ],
)
def test_a_network_of_very_large_images(
    make: Callable[[], dict[str, Tensor]], name: str, shape: tuple[int, ...], side: int, tmp_path: Path
) -> None:
    torch.save({**make(), name: torch.zeros(shape, dtype=torch.float16)}, tmp_path / "model.pth")
    message = f"expected a network of images of at most 1024 x 1024 pixels, got {side}"
    with pytest.raises(FileFormatError, match=message):
        load(tmp_path / "model.pth", "adaface")
