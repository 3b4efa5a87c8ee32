"""Checkpoints: PyTorch files in both forms, of pickles that are nearly right, and safetensors."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import pickletools
import random as _random
import struct
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from prefiqs_ext import Scorer
from prefiqs_ext.models import load
from tests import layouts
from tests.fuzz.mutations import NAMES, NUMBERS, mutate_bytes

_SCORED = 10  # of so many files, one becomes a Scorer too


def _load(data: bytes, suffix: str) -> None:
    """Loads a file as a user would. What is loaded must be the numbers that torch itself finds in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{suffix}"
        path.write_bytes(data)
        network, _ = load(path)
        if suffix == ".pth" and (theirs := _load_by_torch(path)) is not None:
            for name, tensor in network.state_dict().items():
                if tensor.is_floating_point() and tensor.numel() > 1:
                    assert _hash(tensor) in theirs, f"{name} is not in the file"
        if hashlib.sha256(data).digest()[0] % _SCORED == 0:
            Scorer(path)


def _load_by_torch(path: Path) -> set[bytes] | None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # it refuses more than this package does
        return None
    return {_hash(tensor.float()) for tensor in _list_tensors(content)}


def _list_tensors(content: object, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(content, Tensor) and content.is_floating_point() and content.layout == torch.strided:
        yield content
    elif isinstance(content, dict) and depth < 9:
        for value in content.values():
            yield from _list_tensors(value, depth + 1)


def _hash(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).digest()


@functools.cache
def _make_state() -> dict[str, Tensor]:
    """A small network of the IR family."""
    return layouts.ir_state((4,), adaface=True, affine=False, last=2)


_TENSORS: tuple[Callable[[Tensor, int], object], ...] = (
    lambda tensor, _: tensor.half(),
    lambda tensor, _: tensor.double(),
    lambda tensor, _: tensor.to(torch.int8),
    lambda tensor, number: tensor.reshape(-1)[:1].expand(number, 64),
    lambda tensor, _: torch.cat([tensor.reshape(-1)] * 2)[tensor.numel() :].view(tensor.shape),
    lambda tensor, _: tensor.to("meta"),
    lambda tensor, _: tensor.reshape(-1).to_sparse(),
    lambda tensor, _: tensor * torch.nan,
    lambda tensor, _: nn.Parameter(tensor.float()),
    lambda tensor, _: {"x": tensor},
)


def _change_state(random: _random.Random) -> object:
    """A state dict with tensors that are views, of other types or of other names, in wrappers of training scripts."""
    state: dict[str, object] = OrderedDict(_make_state())
    for _ in range(random.choice((0, 0, 0, 1, 1, 3))):
        name = random.choice(list(state))
        tensor = _make_state().get(name, torch.zeros(3))
        new = random.choice(_TENSORS)(tensor, random.choice((1, 2, 1000, 1 << 20, 1 << 40)))
        state[random.choice((name, name, name, random.choice(NAMES)))] = new
    prefix = random.choice(("", "module.", "features.module.") if random.random() < 0.9 else NAMES)
    content: object = {f"{prefix}{name}": value for name, value in state.items()}
    for _ in range(random.choice((0, 0, 1, 2, 9))):
        key = random.choice(("state_dict", "model", "net") if random.random() < 0.9 else NAMES)
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: torch.zeros(2)}, "lr": 0.1}}
    return content


def _split(data: bytes) -> list[bytes]:
    """Splits a pickle into its opcodes, each with its argument."""
    starts = [place for _, _, place in pickletools.genops(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _number(size: int, number: int) -> bytes:
    return struct.pack("<q", number)[:size]


def _make_piece(random: _random.Random) -> bytes:
    """Opcodes that put one object onto the stack, as a file would that wants time, memory, or a call."""
    count = random.choice((1, 10, 60, 5000))
    number = random.choice(NUMBERS)
    names = (b"cposix\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n")
    names += (b"ctorch.nn.modules.linear\nLinear\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"c\x1b[2J\nx\n")
    name = random.choice(names)
    return random.choice(
        (
            b"]" * count + b"a" * (count - 1),
            b")" + b"\x85" * count,
            b"}" + b"X\x0a\0\0\0state_dict}" * count + b"s" * count,
            b"}" + b")" + b"q\x00h\x00\x86" * min(count, 60) + b"K\x01s",
            b"ccollections\nOrderedDict\n]" + b")" + b"q\x00h\x00\x86" * min(count, 60) + b"K\x01\x86a\x85R",
            b"](" + b"K\x01" * count + b"eq\x01" + b"0h\x01" * count,
            b"(" + b"N" * count + b"tq\x01" + (b"0" + name + b"h\x01R") * min(count, 60),
            b"}q\x01X\x0a\0\0\0state_dicth\x01s",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x01tQ",
            name + b")R",
            name + b"}}X\x0c\0\0\0__defaults__)s\x86b",
            name + b"]" + b"\x85R}X\x05\0\0\0itemsNsb",
            b"\x8a\x08" + struct.pack("<q", number),
            b"r" + struct.pack("<I", number & 0xFFFFFFFF),
            random.choice((b"\x8e", b"\x8d", b"\x96", b"\x95")) + struct.pack("<q", number),
            random.choice((b"X", b"B", b"T", b"\x8b")) + _number(4, number),
            b"".join(b"c%d\nx\n0" % index for index in range(count)) + b"N",
        )
    )


def _change_pickle(data: bytes, random: _random.Random) -> bytes:
    """Changes a pickle by whole opcodes: left out, twice, in another order, with another number, or new."""
    codes = _split(data)
    for _ in range(random.choice((0, 0, 1, 1, 2, 5))):
        at = random.randrange(1, len(codes))
        kind = random.randrange(6)
        if kind == 0:
            del codes[at]
        elif kind == 1:
            codes[at:at] = codes[at : at + random.choice((1, 5))]
        elif kind == 2:
            codes[at : at + 2] = codes[at : at + 2][::-1]
        elif kind == 3 and codes[at][:1] in (b"K", b"M", b"J"):
            codes[at] = b"\x8a\x08" + struct.pack("<q", random.choice(NUMBERS))
        elif kind == 4:
            codes.insert(at, _make_piece(random) + b"0")
        else:
            codes.insert(at, _make_piece(random))
    return b"".join(codes)


def _save(content: object) -> dict[str, bytes]:
    """Gives the files in the archive that torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class _ZipFiles:
    name = "torch_zip"

    def make(self, random: _random.Random) -> bytes:
        entries = _save(_change_state(random))
        (pickled,) = (name for name in entries if name.endswith("data.pkl"))
        entries[pickled] = _change_pickle(entries[pickled], random)
        if random.random() < 0.1:
            name = random.choice(list(entries))
            entries[random.choice((name, *NAMES[1:]))] = mutate_bytes(entries[name], random)
        stream = io.BytesIO()
        packed = random.choice((zipfile.ZIP_STORED,) * 20 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(stream, "w", packed) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        return mutate_bytes(stream.getvalue(), random) if random.random() < 0.1 else stream.getvalue()

    def run(self, data: bytes) -> None:
        _load(data, ".pth")


class _OldFiles:
    name = "torch_old"

    def make(self, random: _random.Random) -> bytes:
        entries = _save(_change_state(random))
        storages = {name.rpartition("/")[2]: data for name, data in entries.items() if "/data/" in name}
        (pickled,) = (data for name, data in entries.items() if name.endswith("data.pkl"))
        parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        parts += [_change_pickle(pickled, random), pickle.dumps(list(storages), 2)]
        for data in storages.values():
            count = len(data) // (8 if len(data) == 8 else 4)  # of 8 bytes are the counters, int64
            count = count if random.random() < 0.99 else random.choice(NUMBERS)
            parts += [struct.pack("<q", count), data]
        whole = b"".join(parts)
        return mutate_bytes(whole, random) if random.random() < 0.1 else whole

    def run(self, data: bytes) -> None:
        _load(data, ".pth")


class _Safetensors:
    name = "safetensors"

    def make(self, random: _random.Random) -> bytes:
        data = save(_make_state())
        size = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        for _ in range(random.choice((0, 1, 1, 3))):
            name = random.choice(list(header))
            entry = header[name]
            kind = random.randrange(6)
            if kind == 0:
                header[random.choice(NAMES)] = header.pop(name)
            elif kind == 1:
                entry["dtype"] = random.choice(
                    ("F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "F4", "C64", "\x1b[2J", "x" * 999)
                )
            elif kind == 2:
                entry["shape"] = [random.choice(NUMBERS) for _ in range(random.choice((0, 1, 4, 300)))]
            elif kind == 3:
                entry["data_offsets"] = [random.choice(NUMBERS), random.choice(NUMBERS)]
            elif kind == 4:
                header["__metadata__"] = {random.choice(NAMES): random.choice(NAMES)}
            else:
                header |= {f"{random.choice(NAMES)}{index}": entry for index in range(random.choice((1, 1000)))}
        text = json.dumps(header).encode()
        if random.random() < 0.05:
            text = text.replace(b"[", b"[" * random.choice((2, 1000)), 1)
        whole = struct.pack("<Q", len(text)) + text + body
        return mutate_bytes(whole, random) if random.random() < 0.2 else whole

    def run(self, data: bytes) -> None:
        _load(data, ".safetensors")


TARGETS = (_ZipFiles(), _OldFiles(), _Safetensors())
