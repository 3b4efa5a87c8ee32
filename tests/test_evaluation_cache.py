"""Computed arrays on disk: broken ones, and two runs at once."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.lib import format as npy

from prefiqs_ext.evaluation import cache
from prefiqs_ext.exceptions import FileAccessError

FACTS = {"of": "something"}
ARRAY = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "get_cache_folder", lambda: tmp_path)
    return tmp_path / "evaluation"


def compute():
    return {"table": ARRAY}


def load_or_compute(facts, names, images, function, kept=None):
    kept = kept or cache.FileCache()
    found = kept.load(facts, names, images)
    if found is None:
        found = function()
        kept.keep(facts, found)
    return found


def stored():
    return load_or_compute(FACTS, ["table"], 3, compute)["table"]


def never():
    raise AssertionError


def test_computed_once():
    assert stored().tolist() == ARRAY.tolist()
    assert load_or_compute(FACTS, ["table"], 3, never)["table"].tolist() == ARRAY.tolist()
    with pytest.raises(AssertionError):
        load_or_compute(FACTS | {"more": 1}, ["table"], 3, never)
    with pytest.raises(AssertionError):
        load_or_compute(FACTS, ["table"], 4, never)


def test_arrays_are_kept_by_name(folder):
    """If one of them is missing or not finite, all are computed again."""
    arrays = {"table": ARRAY, "column": ARRAY[:, 0]}
    names = list(arrays)
    changes = [None, lambda file: file.unlink(), lambda file: np.save(file, np.full(3, np.inf, np.float32))]
    for change in changes:
        if change:
            change(next(folder.glob("*-column.npy")))
            with pytest.raises(AssertionError):
                load_or_compute(FACTS, names, 3, never)
        load_or_compute(FACTS, names, 3, lambda: arrays)
        found = load_or_compute(FACTS, names, 3, never)
        assert [(name, array.tolist()) for name, array in found.items()] == [
            (name, array.tolist()) for name, array in arrays.items()
        ]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-3],
        lambda data: data[:20],
        lambda data: b"PK\x03\x04" + data[4:],  # as a .npz
        lambda data: data.replace(b"(3, 2)", b"(3, (("),
        lambda data: data.replace(b"(3, 2), }       ", b"(9999999999, 9),"),
        lambda data: data[:-4] + np.float32(np.nan).tobytes(),
    ],
)
def test_broken(folder, change):
    stored()
    (file,) = folder.iterdir()
    data = file.read_bytes()
    assert data.startswith(npy.MAGIC_PREFIX)
    file.write_bytes(change(data))
    assert stored().tolist() == ARRAY.tolist()
    assert file.read_bytes() == data


def test_two_runs_at_once(folder, monkeypatch):
    """The other one begins and ends while this one computes."""

    def meanwhile():
        with monkeypatch.context() as patch:
            patch.setattr(cache.os, "getpid", lambda: 1)
            stored()
        return compute()

    assert load_or_compute(FACTS, ["table"], 3, meanwhile)["table"].tolist() == ARRAY.tolist()
    assert len(list(folder.iterdir())) == 1


def full(path):
    raise FileAccessError("cannot write it") from OSError(errno.ENOSPC, "No space left on device")


def read_only(*_):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(
    ("name", "instead", "why"),
    [
        ("atomic_write", full, "No space left on device"),
        ("os", SimpleNamespace(replace=read_only, getpid=int), "Read-only"),
    ],
)
def test_a_place_that_cannot_be_written_is_done_without(folder, monkeypatch, capsys, name, instead, why):
    monkeypatch.setattr(cache, name, instead)
    for _ in range(2):
        assert stored().tolist() == ARRAY.tolist()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prefiqs: results are computed but not kept, as {folder} cannot be written ({why}")
    assert "PREFIQS_HOME" in line


def test_a_cache_folder_that_is_none(folder, capsys):
    folder.write_bytes(b"a file where the folder should be")
    assert stored().tolist() == ARRAY.tolist()
    assert "(File exists)" in capsys.readouterr().err


def test_in_memory(folder):
    kept = cache.MemoryCache()
    assert load_or_compute(FACTS, ["table"], 3, compute, kept)["table"].tolist() == ARRAY.tolist()
    assert load_or_compute(FACTS, ["table"], 3, never, kept)["table"].tolist() == ARRAY.tolist()
    assert kept.load(FACTS | {"more": 1}, ["table"], 3) is None
    assert cache.MemoryCache().load(FACTS, ["table"], 3) is None
    assert not folder.exists()
