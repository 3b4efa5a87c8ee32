"""What a folder's images are: one rule for all that reads folders.

An image is a file with one of SUFFIXES, in the folder or at any depth below it. What is hidden (its name begins with a
dot) and what systems keep for themselves (previews, waste, archives' twins of files) is passed over, and so are files
with other suffixes, which are counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator

from prefiqs_ext.utils.text import escape_unprintable

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".avif", ".ppm", ".pgm", ".pbm", ".pnm"}
"""Names that count as images in a folder, in lower case. A file that is named itself may have any name."""

_OF_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_OF_SYSTEMS |= {"__macosx", "icon\r", "lost+found", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}
_PHOTOS = {
    ".heic",
    ".heif",
    ".hif",
    ".avci",
    ".jxl",
    ".raw",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".raf",
    ".orf",
    ".psd",
}
"""Of photos that nothing here reads."""
_SHOWN_KINDS = 5


def entries(folder: str) -> list[tuple[str, bool]]:
    """What the rule does not hide of a folder: names, sorted, and whether each is a folder. OSError."""
    with os.scandir(folder) as found:
        return sorted((entry.name, _is_folder(entry)) for entry in found if not _is_hidden(entry.name))


def suffix(name: str) -> str:
    """In lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def stem(name: str) -> str:
    """A file's name without an image's suffix; without one, the name."""
    return os.path.splitext(name)[0] if suffix(name) in SUFFIXES else name


class Folders:
    """Reads folders, each once however links lead there."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        """report: gets a folder's path and what is the matter: met again (a loop of links), cannot be read."""
        self._report = report
        self._met: set[tuple[int, int]] = set()
        self.passed_over: Counter[str] = Counter()
        """Files that are no images, by suffix."""

    def images(self, folder: str) -> Iterator[str]:
        """Paths of the images, sorted by name, files before sub-folders."""
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
                found = entries(folder)
            except OSError as error:
                self._report(folder, f"folder cannot be read ({error.strerror})")
                continue
            for name, is_folder in found:
                if suffix(name) in SUFFIXES and not is_folder:
                    yield os.path.join(folder, name)
                elif not is_folder:
                    self.passed_over[suffix(name)] += 1
            stack.extend(os.path.join(folder, name) for name, is_folder in reversed(found) if is_folder)


def counted(passed_over: Counter[str]) -> str:
    """`12 files passed over: .heic 11, .txt 1`, and what to do with photos among them, for a person to read; nothing
    for none."""
    if not passed_over:
        return ""
    kinds = [f"{escape_unprintable(kind)[:12] or 'no suffix'} {count}" for kind, count in passed_over.most_common()]
    more = [f"{len(kinds) - _SHOWN_KINDS} other kinds"] if len(kinds) > _SHOWN_KINDS else []
    files = f"{passed_over.total()} file{'s' if passed_over.total() > 1 else ''}"
    remedy = "; convert photos to JPEG or PNG first" if _PHOTOS & passed_over.keys() else ""
    return f"{files} passed over: {', '.join(kinds[:_SHOWN_KINDS] + more)}{remedy}"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for instance, which must not hide the others
        return False
