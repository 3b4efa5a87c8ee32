"""Files that are damaged, something else, or meant to do harm: refused in one line, and never executed."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import layouts
import pytest
import torch
from safetensors.torch import save_file

from prefiqs_ext.models import load_model


class Payload:
    """Runs a command when unpickled by a careless reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


class _Numbers(NamedTuple):
    magic: int = 0x1950A86A20F9469CFC6C
    protocol: int = 1001


def write_pickles(path: Path, *objects: object) -> None:
    with path.open("wb") as file:
        for each in objects:
            pickle.dump(each, file, protocol=2)


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "old, by hand", "keys, by hand", "nested"])
def test_a_malicious_pickle_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pth"
    payload = Payload(mark)
    if form in ("zip", "old"):
        torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "nested":
        torch.save({"layer1.0.conv1.weight": torch.zeros(3), "x": [payload]}, path)
    elif form == "pickle":
        write_pickles(path, payload)
    elif form == "old, by hand":
        write_pickles(path, *_Numbers(), {}, payload, [])
    else:
        write_pickles(path, *_Numbers(), {}, {"layer1.0.conv1.weight": 1}, payload)
    with pytest.raises(ValueError, match=r"for safety|damaged") as error:
        load_model(path, "arcface")
    assert "\n" not in str(error.value)
    assert not mark.exists()
    careless = path.read_bytes() if form == "pickle" else None
    if careless is not None:  # the payload is one: the test can fail
        pickle.loads(careless)
        assert mark.exists()


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 174000000\n",
    "zeros": bytes(1000),
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".dat"])
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(what: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(GARBAGE[what])
    with pytest.raises(ValueError, match=f"cannot load {path}: ") as error:
        load_model(path, "arcface")
    assert "\n" not in str(error.value)


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
            load_model(path, "facexzoo")
        assert "\n" not in str(error.value)


def test_a_damaged_archive(tmp_path: Path) -> None:
    """Any byte of its directory."""
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2)}, path)
    data = path.read_bytes()
    for position in range(data.index(b"PK\x01\x02"), len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        with pytest.raises(ValueError, match="cannot load") as error:
            load_model(path, "arcface")
        assert "\n" not in str(error.value)


def test_a_zip_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({**layouts.mobilefacenet_state(), "more": torch.zeros(2_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"expected an archive that is not compressed; save it again with torch\.save"):
        load_model(path, "arcface")


def test_a_small_pickle_that_asks_for_much_memory(tmp_path: Path) -> None:
    """A memo index of 2^23: the unpickler in C makes room for all entries below twice that, 128 MB."""
    path = tmp_path / "memo.pth"
    write_pickles(path, *_Numbers(), {})
    with path.open("ab") as file:
        file.write(b"\x80\x02]r\x00\x00\x80\x00ctorch.nn.parallel.data_parallel\nDataParallel\n.")
    tracemalloc.start()
    with pytest.raises(ValueError, match="for safety"):
        load_model(path, "arcface")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
