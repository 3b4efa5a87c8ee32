"""Which files are meant: arguments, folders and lists become paths, in a fixed order, found as they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain

from prefiqs_ext.exceptions import InputError, InputTypeError
from prefiqs_ext.files.folders import FolderReader, describe_ignored
from prefiqs_ext.files.remote import expand_address
from prefiqs_ext.utils.check_arguments import check_path
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import read_lines
from prefiqs_ext.utils.suffixes import is_address, is_container, refuse_archive_or_video, refuse_url
from prefiqs_ext.utils.tell import Tell, tell_nobody
from prefiqs_ext.utils.text import format_path


def find_paths(
    arguments: Iterable[str | os.PathLike[str]], tell: Tell = tell_nobody, *, containers: bool = False
) -> Iterator[str]:
    """Finds every image that the arguments mean, in the order of the arguments.

    A file that the arguments name, and that a folder among them has too, is found once. A list is taken line by line:
    a path that stands in it twice is found twice.

    Args:
        arguments: Each is a file; a folder, which means its images by the rule of folders.py; or ``@FILE``, a list with
            one file or folder per line, relative to the working directory. In a list, blank lines, CRLF and a byte
            order mark do no harm, and a file that does not exist stays in the result: reading it is what fails. Names
            that are not UTF-8 are kept as os.fsdecode gives them.
        tell: Gets one line for each path that is given twice, for each folder that is met again (a loop of links) or
            cannot be read, and one at the end that counts the files ignored for their suffix.
        containers: Whether a path may also be an archive, a Parquet file, or an address of any of these; see
            :class:`prefiqs_ext.files.InputImages`, which reads them.

    Yields:
        The paths, each one when it is asked for.

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
        refuse_unreadable(argument, containers=containers)
    finder = _PathFinder(tell)
    found = finder.find(given)
    first = next(found, None)
    if first is None:
        ignored = describe_ignored(finder.folders.ignored)
        none = f"expected images, found none in {', '.join(map(format_path, given))}"
        raise InputError(f"{none}; {ignored}" if ignored else none)
    return chain([first], found, finder.tell_ignored())


class _PathFinder:
    """Finds the images of one argument after another and leaves out named files that it has found before."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._named: set[str] = set()
        self._real = lru_cache(maxsize=1024)(os.path.realpath)  # a relative path's meaning may change after this run
        self.folders = FolderReader(lambda folder, what: tell(f"{format_path(folder)}: {what}"))

    def find(self, arguments: Iterable[str]) -> Iterator[str]:
        for argument in arguments:
            if argument.startswith("@"):
                for _, line in read_lines(argument[1:]):
                    yield from self._find_listed(line)
            elif is_address(argument):
                for address, is_folder in expand_address(argument):
                    yield from self._find_named(address, is_folder=is_folder)
            else:
                yield from self._find_named(argument, is_folder=os.path.isdir(argument))

    def tell_ignored(self) -> Iterator[str]:
        """Says how many files were ignored when this is reached, at the end; finds nothing more."""
        if ignored := describe_ignored(self.folders.ignored):
            self._tell(ignored)
        yield from ()

    def _find_listed(self, line: str) -> Iterator[str]:
        # An address in a list is a file unless it ends in a slash: asking a store for each one would take hours.
        if line.endswith("/") if is_address(line) else os.path.isdir(line):
            yield from self.folders.find_images(line)
        else:
            yield line

    def _find_named(self, path: str, *, is_folder: bool) -> Iterator[str]:
        for file in self.folders.find_images(path) if is_folder else (path,):
            if is_folder and not self._named:
                yield file
                continue
            key = self._identify(file)
            if key in self._named or (not is_folder and self.folders.has_found(file)):
                self._tell(f"{format_path(file)}: given before, scored once")
                continue
            if not is_folder:
                self._named.add(key)
            yield file

    def _identify(self, file: str) -> str:
        """Gives one key for one file by whatever way: links to folders are resolved; a link to a file is a file."""
        if is_address(file):
            return file
        folder, name = os.path.split(file)
        return os.path.join(self._real(folder), name)


def refuse_unreadable(argument: str, *, containers: bool = False) -> None:
    """Refuses what is no image, folder or list, before any work begins; the error names the way.

    Args:
        argument: Where to look for images, as :func:`find_paths` takes it.
        containers: Whether it may be an archive, a Parquet file or an address.

    Raises:
        InputError: A URL such as ``https://example.org/a.jpg``.
        MissingFileError: There is no such file or folder.
        FileAccessError: It cannot be looked at.
        FileFormatError: An archive or a video.
    """
    if argument.startswith("@"):
        return  # reading the list says what is wrong with it
    if is_address(argument) and containers:
        return  # so does asking the store
    refuse_url(argument, "a file or folder")
    with explain_read_errors(format_path(argument)):
        os.stat(argument)
    if not os.path.isdir(argument) and not (containers and is_container(argument)):
        refuse_archive_or_video(argument, "an image or a folder")
