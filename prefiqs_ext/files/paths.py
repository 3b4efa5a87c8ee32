"""Which files are meant: arguments, folders and lists become one list of paths, in a fixed order, each once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from prefiqs_ext.whole import shown

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".avif", ".ppm", ".pgm", ".pbm", ".pnm"}
"""Names that count as images in a folder, in lower case. A file that is named itself may have any name."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_paths(arguments: Iterable[str], report: Callable[[str], None]) -> list[str]:
    """Every image that the arguments mean, each once, in the order of the arguments.

    An argument is a file, a folder (its images by SUFFIXES, recursively, sorted by name, files before sub-folders;
    names that begin with a dot are passed over), or `@FILE`: a list with one file or folder a line, relative to the
    working directory; blank lines, CRLF and a byte order mark do no harm. Names that are not UTF-8 are kept as
    os.fsdecode gives them. A file that does not exist stays in: reading it is what fails.

    report: gets one line for each path given twice, folder met again (a loop of links) and folder that cannot be read.

    Raises ValueError for a list that cannot be read.
    """
    finder = _Finder(report)
    return [path for argument in arguments for path in finder.images(argument)]


class _Finder:
    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._files: set[str] = set()
        self._real = lru_cache(maxsize=1024)(os.path.realpath)  # a relative path's meaning may change after this run
        self._folders: set[tuple[int, int]] = set()

    def images(self, argument: str) -> Iterator[str]:
        if argument.startswith("@"):
            for line in _lines(argument[1:]):
                yield from self._path(line)
        else:
            yield from self._path(argument)

    def _path(self, path: str) -> Iterator[str]:
        if os.path.isdir(path):
            yield from self._folder(path)
        else:
            yield from self._file(path)

    def _file(self, path: str) -> Iterator[str]:
        folder, name = os.path.split(path)
        # Links to folders are resolved, so that one file has one key by whatever way; a link to a file is a file.
        key = os.path.join(self._real(folder), name)
        if key in self._files:
            self._report(f"{shown(path)}: given before, scored once")
            return
        self._files.add(key)
        yield path

    def _folder(self, path: str) -> Iterator[str]:
        # A stack instead of recursion: folders may nest deeper than Python's calls.
        stack = [path]
        while stack:
            folder = stack.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self._folders:
                    self._report(f"{shown(folder)}: folder met before, read once")
                    continue
                self._folders.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    found = sorted((entry.name, _is_folder(entry)) for entry in entries if entry.name[0] != ".")
            except OSError as error:
                self._report(f"{shown(folder)}: folder cannot be read ({error.strerror})")
                continue
            for name, is_folder in found:
                if not is_folder and os.path.splitext(name)[1].lower() in SUFFIXES:
                    yield from self._file(os.path.join(folder, name))
            stack.extend(os.path.join(folder, name) for name, is_folder in reversed(found) if is_folder)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for instance, which must not hide the others
        return False


def _lines(file: str) -> Iterator[str]:
    try:
        content = Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"expected a list of paths after '@', cannot read {shown(file)} ({reason})") from error
    if b"\0" in content:
        raise ValueError(f"expected a list with one path a line in {shown(file)}, got NUL bytes")
    for line in content.removeprefix(_BYTE_ORDER_MARK).split(b"\n"):
        line = line.removesuffix(b"\r")
        if line.strip():
            yield os.fsdecode(line)
