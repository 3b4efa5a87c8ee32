"""Two processes on one output or one cache: each file is one run's, at every moment, or the other run says so."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prefiqs_ext.evaluation.cache import FileCache
from prefiqs_ext.exceptions import FileAccessError, MissingWeightsError
from prefiqs_ext.files import Record, ScoredFile, Writer
from prefiqs_ext.models.weights import get_cache_folder
from prefiqs_ext.utils.partial_file import PartialFile

_PATHS = ["a.jpg", "b.jpg"]


def _make_writer(folder: Path, *, resume: bool = False) -> Writer:
    return Writer(folder / "t.csv", folder / "t.npy", settings={}, paths=_PATHS, resume=resume)


def _add_all(results: Writer) -> None:
    for path in _PATHS[results.progress.paths :]:
        results.add(ScoredFile(path, [Record(path, 0, "ok", 0.5, 0.5, 1.0, 1.0)], torch.ones(1, 2)))


@pytest.mark.parametrize("change", ["renamed", "removed", "replaced"])
def test_a_part_that_changes_between_opening_and_locking(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ends just then. Its finished file must not be written to."""
    file, part = tmp_path / "t.csv", tmp_path / "t.csv.part"
    part.write_bytes(b"all of the other run")
    flock, changes = fcntl.flock, [part.unlink if change == "removed" else lambda: part.rename(file)]
    if change == "replaced":
        changes = [lambda: (part.rename(file), part.write_bytes(b"more"))]

    def lock(stream: object, how: int) -> None:
        while changes:
            changes.pop()()
        flock(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", lock)
    own = PartialFile(file)
    assert own.size == (4 if change == "replaced" else 0)
    own.truncate(0)
    own.write(b"new")
    own.complete()
    own.close()
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["t.csv"]


def test_no_name_is_taken_back_from_a_run_that_is_finishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each of its renames, and before its state goes, another run tries with --resume."""
    seen = []

    def try_too(action: Callable[..., None], *names: str | Path) -> None:
        if action is replace or str(names[0]).endswith(".state"):  # a run that is refused removes its empty parts
            before = sorted(os.listdir(tmp_path))
            with pytest.raises(FileAccessError, match="is being written by another run"):
                _make_writer(tmp_path, resume=True)
            assert sorted(os.listdir(tmp_path)) == before
            seen.append(before)
        action(*names)

    replace, unlink = os.replace, os.unlink
    with _make_writer(tmp_path) as results:
        _add_all(results)
        results.save()
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "save", lambda self: None)  # which renames the state, as often before
            patch.setattr(os, "replace", lambda *names: try_too(replace, *names))
            patch.setattr(os, "unlink", lambda *names: try_too(unlink, *names))
            results.finish()
    assert len(seen) == 4
    assert sorted(os.listdir(tmp_path)) == ["t.csv", "t.npy", "t.paths"]
    assert (tmp_path / "t.csv").read_text().count("\n") == 3


def test_a_run_that_is_refused_leaves_no_empty_parts(tmp_path: Path) -> None:
    """An empty part beside the finished file would look as if that had lost its end."""
    with _make_writer(tmp_path) as results:
        _add_all(results)
    os.rename(tmp_path / "t.npy.part", tmp_path / "t.npy")  # as a run leaves it that ends between two renames
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match="2 finished paths of an earlier run: go on with --resume"):
        _make_writer(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
    with _make_writer(tmp_path, resume=True) as results:
        results.finish()
    assert np.load(tmp_path / "t.npy").shape == (2, 2)


def test_two_processes_keep_the_same_in_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path))
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(3, 2)}

    cache = FileCache()
    assert cache.load({"of": "a"}, ("a",), 3) is None
    process = os.fork()
    cache.keep({"of": "a"}, arrays)
    if not process:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert len(os.listdir(tmp_path / "evaluation")) == 1
    found = cache.load({"of": "a"}, ("a",), 3)
    assert found is not None
    np.testing.assert_array_equal(found["a"], arrays["a"])


def test_a_cache_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIQS_HOME", "~nobody-of-this-name/cache")
    with pytest.raises(MissingWeightsError, match=r"no home folder is known .* set PREFIQS_HOME"):
        get_cache_folder()
