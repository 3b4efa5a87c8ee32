"""Which files are meant: arguments, folders and lists become one list of paths, in a fixed order, each path once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.files.folders import FolderReader, describe_ignored
from prefiqs_ext.utils.check_arguments import check_path
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import read_lines
from prefiqs_ext.utils.suffixes import refuse_archive_or_video, refuse_url
from prefiqs_ext.utils.tell import Tell, tell_nobody
from prefiqs_ext.utils.text import format_path


def find_paths(arguments: Iterable[str | os.PathLike[str]], tell: Tell = tell_nobody) -> list[str]:
    """Finds every image that the arguments mean, each one once, in the order of the arguments.

    Args:
        arguments: Each is a file; a folder, which means its images by the rule of folders.py; or ``@FILE``, a list with
            one file or folder per line, relative to the working directory. In a list, blank lines, CRLF and a byte
            order mark do no harm, and a file that does not exist stays in the result: reading it is what fails. Names
            that are not UTF-8 are kept as os.fsdecode gives them.
        tell: Gets one line for each path that is given twice, for each folder that is met again (a loop of links) or
            cannot be read, and one that counts the files ignored for their suffix.

    Raises:
        InputTypeError: `arguments` is a single path, or has something that is no path.
        InputError: No image is found, or an argument is a URL.
        MissingFileError: A file, folder or list does not exist.
        FileAccessError: A file, folder or list cannot be read.
        FileFormatError: An argument is an archive or a video; a list is no text.
    """
    if isinstance(arguments, (str, bytes, os.PathLike)):
        raise InputTypeError(f"expected several paths, as a list has them, got one {type(arguments).__name__}")
    given = list(map(check_path, arguments))
    for argument in given:
        refuse_unreadable(argument)
    finder = _PathFinder(tell)
    found = [path for argument in given for path in finder.find(argument)]
    ignored = describe_ignored(finder.folders.ignored)
    if not found:
        none = f"expected images, found none in {', '.join(map(format_path, given))}"
        raise InputError(f"{none}; {ignored}" if ignored else none)
    if ignored:
        tell(ignored)
    return found


class _PathFinder:
    """Finds the images of one argument after another and leaves out those it has found before."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._files: set[str] = set()
        self._real = lru_cache(maxsize=1024)(os.path.realpath)  # a relative path's meaning may change after this run
        self.folders = FolderReader(lambda folder, what: tell(f"{format_path(folder)}: {what}"))

    def find(self, argument: str) -> Iterator[str]:
        if argument.startswith("@"):
            for _, line in read_lines(argument[1:]):
                yield from self._find_in(line)
        else:
            yield from self._find_in(argument)

    def _find_in(self, path: str) -> Iterator[str]:
        for file in self.folders.find_images(path) if os.path.isdir(path) else (path,):
            folder, name = os.path.split(file)
            # Links to folders are resolved, so that one file has one key by whatever way; a link to a file is a file.
            key = os.path.join(self._real(folder), name)
            if key in self._files:
                self._tell(f"{format_path(file)}: given before, scored once")
                continue
            self._files.add(key)
            yield file


def refuse_unreadable(argument: str) -> None:
    """Refuses what is no image, folder or list, before any work begins; the error names the way.

    Args:
        argument: Where to look for images, as :func:`find_paths` takes it.

    Raises:
        InputError: A URL such as ``https://example.org/a.jpg``.
        MissingFileError: There is no such file or folder.
        FileAccessError: It cannot be looked at.
        FileFormatError: An archive or a video.
    """
    if argument.startswith("@"):
        return  # reading the list says what is wrong with it
    refuse_url(argument, "a file or folder")
    with explain_read_errors(format_path(argument)):
        os.stat(argument)
    if not os.path.isdir(argument):
        refuse_archive_or_video(argument, "an image or a folder")
