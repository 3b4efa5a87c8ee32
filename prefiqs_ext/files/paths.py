"""Which files are meant: arguments, folders and lists become one list of paths, in a fixed order, each once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputError, MissingFileError
from prefiqs_ext.files.folders import Folders, counted
from prefiqs_ext.utils.suffixes import ARCHIVES, VIDEOS
from prefiqs_ext.utils.text import format_path, lines

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def find_paths(arguments: Iterable[str], report: Callable[[str], None]) -> list[str]:
    """Every image that the arguments mean, each once, in the order of the arguments.

    An argument is a file, a folder (its images by the rule of folders.py), or `@FILE`: a list with one file or folder a
    line, relative to the working directory; blank lines, CRLF and a byte order mark do no harm. Names that are not
    UTF-8 are kept as os.fsdecode gives them. In a list, a file that does not exist stays in: reading it is what fails.

    report: gets one line for each path given twice, folder met again (a loop of links) and folder that cannot be read,
    and one that counts the files passed over for their suffix.

    Raises ValueError for a list that cannot be read, and where no image is found.
    """
    arguments = list(arguments)
    for argument in arguments:
        refuse_unreadable(argument)
    finder = _Finder(report)
    found = [path for argument in arguments for path in finder.images(argument)]
    passed_over = counted(finder.folders.passed_over)
    if not found:
        none = f"expected images, found none in {', '.join(map(format_path, arguments))}"
        raise InputError(f"{none}; {passed_over}" if passed_over else none)
    if passed_over:
        report(passed_over)
    return found


class _Finder:
    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._files: set[str] = set()
        self._real = lru_cache(maxsize=1024)(os.path.realpath)  # a relative path's meaning may change after this run
        self.folders = Folders(lambda folder, what: report(f"{format_path(folder)}: {what}"))

    def images(self, argument: str) -> Iterator[str]:
        if argument.startswith("@"):
            for line in _lines(argument[1:]):
                yield from self._path(line)
        else:
            yield from self._path(argument)

    def _path(self, path: str) -> Iterator[str]:
        for file in self.folders.images(path) if os.path.isdir(path) else (path,):
            folder, name = os.path.split(file)
            # Links to folders are resolved, so that one file has one key by whatever way; a link to a file is a file.
            key = os.path.join(self._real(folder), name)
            if key in self._files:
                self._report(f"{format_path(file)}: given before, scored once")
                continue
            self._files.add(key)
            yield file


def _lines(file: str) -> Iterator[str]:
    try:
        for _, line in lines(file):
            yield line
    except OSError as error:
        raise InputError(
            f"expected a list of paths after '@', cannot read {format_path(file)} ({error.strerror})"
        ) from error


def refuse_unreadable(argument: str) -> None:
    """Refuses what is no image, folder or list, before any work begins; the error names the way.

    Args:
        argument: Where to look for images, as :func:`find_paths` takes it.

    Raises:
        InputError: An address such as ``https://example.org/a.jpg``.
        MissingFileError: There is no such file or folder.
        FileAccessError: It cannot be looked at.
        FileFormatError: An archive or a video.
    """
    if argument.startswith("@"):
        return  # reading the list says what is wrong with it
    name = format_path(argument)
    if _URL.match(argument):
        raise InputError(f"expected a file or folder, got the address {name}: download it first")
    try:
        os.stat(argument)
    except OSError as error:
        kind = MissingFileError if isinstance(error, (FileNotFoundError, NotADirectoryError)) else FileAccessError
        raise kind(f"cannot read {name} ({error.strerror}); check the path and its permissions") from error
    if os.path.isdir(argument):
        return
    suffix = os.path.splitext(argument)[1].lower()
    if suffix in ARCHIVES:
        raise FileFormatError(f"expected an image or a folder, got the archive {name}: unpack it and name its folder")
    if suffix in VIDEOS:
        raise FileFormatError(
            f"expected an image or a folder, got the video {name}: take pictures from it with "
            f"`mkdir frames && ffmpeg -i {name} -vf fps=2 frames/%06d.png`, and name the folder frames"
        )
