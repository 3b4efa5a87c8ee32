"""Which files of a folder are images: one rule for everything that reads folders.

An image is a file with one of SUFFIXES, in the folder itself or in any folder below it. Hidden files (their name begins
with a dot), and files that systems keep for themselves, such as previews and trash, are left out silently. Files with
other suffixes are ignored and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator

from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.suffixes import get_suffix
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


def list_folder(folder: str) -> list[tuple[str, bool]]:
    """Lists a folder without what is hidden.

    Returns:
        Name, and whether it is a folder, of each entry, sorted by name.

    Raises:
        MissingFileError: There is no such folder.
        FileAccessError: The folder cannot be read.
    """
    with explain_read_errors(format_path(folder)):
        return _scan(folder)


def strip_image_suffix(name: str) -> str:
    """Gives a file name without its suffix if that is an image's; otherwise the name as it is."""
    return os.path.splitext(name)[0] if get_suffix(name) in SUFFIXES else name


class FolderReader:
    """Finds images in folders. Each folder is read once, however links lead to it.

    Args:
        report: Gets a folder's path and what is the matter with it: it was met before (a loop of links), or it cannot
            be read.

    Attributes:
        ignored: How many files were ignored, by suffix.
    """

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report
        self._met: set[tuple[int, int]] = set()
        self.ignored: Counter[str] = Counter()

    def find_images(self, folder: str) -> Iterator[str]:
        """Finds the images of a folder and of the folders below it.

        Yields:
            Their paths, sorted by name; the files of a folder come before the folders in it.
        """
        # A stack instead of recursion: folders may nest deeper than Python's calls.
        stack = [folder]
        while stack:
            folder = stack.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self._met:
                    self._report(folder, "folder met before, read once")
                    continue
                self._met.add((status.st_dev, status.st_ino))
                found = _scan(folder)
            except OSError as error:
                self._report(folder, f"folder cannot be read ({error.strerror})")
                continue
            for name, is_folder in found:
                if get_suffix(name) in SUFFIXES and not is_folder:
                    yield os.path.join(folder, name)
                elif not is_folder:
                    self.ignored[get_suffix(name)] += 1
            stack.extend(os.path.join(folder, name) for name, is_folder in reversed(found) if is_folder)


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
    return f"{files} passed over: {', '.join(kinds[:_SHOWN_KINDS] + more)}{remedy}"


def _scan(folder: str) -> list[tuple[str, bool]]:
    with os.scandir(folder) as found:
        return sorted((entry.name, _is_folder(entry)) for entry in found if not _is_hidden(entry.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for instance, which must not hide the others
        return False
