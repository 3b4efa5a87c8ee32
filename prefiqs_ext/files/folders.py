"""Which files of a folder are images: one rule for everything that reads folders.

An image is a file with one of SUFFIXES, in the folder itself or in any folder below it. Hidden files (their name begins
with a dot), and files that systems keep for themselves, such as previews and trash, are left out silently. Files with
other suffixes are ignored and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator

from prefiqs_ext.files.remote import identify_folder, list_remote_folder
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.suffixes import CONTAINERS, get_suffix, is_address
from prefiqs_ext.utils.text import escape_unprintable, format_path

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".avif", ".ppm", ".pgm", ".pbm", ".pnm"}
"""Suffixes of images in a folder, in lower case. A file that a user names may have any name."""

_SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_SYSTEM_NAMES |= {
    "__macosx",
    "icon\r",
    "lost+found",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@recycle",
    "@recently-snapshot",
}
_OTHER_PHOTOS = {".heic", ".heif", ".hif", ".avci", ".jxl", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"}
_OTHER_PHOTOS |= {".orf", ".psd"}
"""Suffixes of photos that cannot be read here."""
_SHOWN_KINDS = 5
_FILE, _FOLDER, _LINK = range(3)  # a link to a folder; a link to a file is a file


def list_folder(folder: str) -> list[tuple[str, bool]]:
    """Lists a folder without what is hidden.

    Returns:
        Name, and whether it is a folder, of each entry, sorted by name.

    Raises:
        MissingFileError: There is no such folder.
        FileAccessError: The folder cannot be read.
    """
    with explain_read_errors(format_path(folder)):
        return [(name, kind != _FILE) for name, kind in _scan(folder)]


def strip_image_suffix(name: str) -> str:
    """Gives a file name without its suffix if that is an image's; otherwise the name as it is."""
    return os.path.splitext(name)[0] if get_suffix(name) in SUFFIXES else name


class FolderReader:
    """Finds images in folders. Each folder is read once, however links lead to it.

    Memory holds the folders that were named or linked to, and the names in the folder that is being read.

    Args:
        report: Gets a folder's path and what is the matter with it: it was met before (a loop of links), or it cannot
            be read.

    Attributes:
        ignored: How many files were ignored, by suffix.
    """

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report
        self._tops: set[Hashable] = set()  # where a walk began: any other folder is met within one of these
        self.ignored: Counter[str] = Counter()

    def find_images(self, folder: str) -> Iterator[str]:
        """Finds the images of a folder and of the folders below it.

        Args:
            folder: A folder of this machine, or the address of one such as ``s3://bucket/photos``.

        Yields:
            Their paths, sorted by name; the files of a folder come before the folders in it.
        """
        # A stack instead of recursion: folders may nest deeper than Python's calls.
        stack = [(folder, True)]
        while stack:
            folder, is_top = stack.pop()
            try:
                identity = identify_folder(folder)
                if identity in self._tops or (is_top and self._is_below_a_top(folder)):
                    self._report(folder, "folder met before, read once")
                    continue
                if is_top:
                    self._tops.add(identity)
                found = _scan(folder)
            except OSError as error:
                self._report(folder, f"folder cannot be read ({error.strerror or error})")
                continue
            for name, kind in found:
                if kind != _FILE:
                    continue
                if get_suffix(name) in SUFFIXES:
                    yield os.path.join(folder, name)
                else:
                    self.ignored[get_suffix(name)] += 1
            stack.extend((os.path.join(folder, name), kind == _LINK) for name, kind in reversed(found) if kind != _FILE)

    def has_found(self, file: str) -> bool:
        """Whether the images that were found so far, of folders read to their ends, have a file."""
        if get_suffix(file) not in SUFFIXES or is_hidden(os.path.basename(file)):
            return False
        folder = os.path.dirname(file) or "."
        try:
            return identify_folder(folder) in self._tops or self._is_below_a_top(folder)
        except OSError:
            return False

    def _is_below_a_top(self, folder: str) -> bool:
        """Whether a walk that began elsewhere meets this folder: one that is named, or that a link leads to."""
        if is_address(folder):
            return any(address in self._tops for address in _list_parents(folder))
        path = os.path.realpath(folder)
        while (parent := os.path.dirname(path)) != path:
            if is_hidden(os.path.basename(path)):
                return False
            path = parent
            if identify_folder(path) in self._tops:
                return True
        return False


def describe_ignored(ignored: Counter[str]) -> str:
    """Describes the ignored files in one line, with a remedy for photos among them.

    For example: ``12 files passed over: .heic 11, .txt 1; convert photos to JPEG or PNG first``.

    Args:
        ignored: How many files there are of each suffix.

    Returns:
        The line; empty if there are none.
    """
    if not ignored:
        return ""
    kinds = [f"{escape_unprintable(kind)[:12] or 'no suffix'} {count}" for kind, count in ignored.most_common()]
    more = [f"{len(kinds) - _SHOWN_KINDS} other kinds"] if len(kinds) > _SHOWN_KINDS else []
    files = f"{ignored.total()} file{'s' if ignored.total() > 1 else ''}"
    remedy = "; convert photos to JPEG or PNG first" if _OTHER_PHOTOS & ignored.keys() else ""
    if CONTAINERS & ignored.keys():
        remedy += "; name archives and Parquet files themselves, as in FOLDER/*.tar"
    return f"{files} passed over: {', '.join(kinds[:_SHOWN_KINDS] + more)}{remedy}"


def _scan(folder: str) -> list[tuple[str, int]]:
    if is_address(folder):
        listed = ((name, _FOLDER if is_folder else _FILE) for name, is_folder in list_remote_folder(folder))
        return sorted((name, kind) for name, kind in listed if not is_hidden(name))
    with os.scandir(folder) as found:
        return sorted((entry.name, _find_kind(entry)) for entry in found if not is_hidden(entry.name))


def _list_parents(address: str) -> Iterator[str]:
    while "://" in (address := address.rstrip("/").rpartition("/")[0]).rstrip("/"):
        yield address


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out silently."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _find_kind(entry: os.DirEntry[str]) -> int:
    try:
        if not entry.is_dir():
            return _FILE
        return _LINK if entry.is_symlink() else _FOLDER
    except OSError:  # a link to itself, for instance, which must not hide the others
        return _FILE
