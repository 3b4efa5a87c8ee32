"""Which image is meant by what a list, a table of scores or a saved embedding calls it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prefiqs_ext.evaluation.datasets.crops import Encoded, Source, name_of
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.files.folders import strip_image_suffix
from prefiqs_ext.utils.text import format_path

_FOLDER_OF_SCRIPTS = "images"
"""CR-FIQA's scripts put all images of a benchmark there, so that it says nothing of who they show."""


class Names:
    """Finds images by the ends of paths: data/ann/1.jpg is also ann/1.jpg, and that of another folder's data.

    Suffixes matter only where images differ in nothing else. An image of a .bin is called by its number of five digits,
    as CR-FIQA's scripts do.
    """

    def __init__(self, images: Sequence[Source]) -> None:
        self._images = images
        folders = {os.path.dirname(name_of(image)) for image in images if not isinstance(image, Encoded)}
        shared = len(_parts(os.path.commonpath(map(os.path.abspath, folders)))) if folders else 0
        self.keys = [_key(i, image, shared) for i, image in enumerate(images)]
        """What each is called: the parts of its path below the folder that holds all, its own folder at least, without
        suffix."""
        self._places: dict[tuple[str, ...], list[int]] = {}
        for i, key in enumerate(self.keys):
            for start in range(len(key)):
                self._places.setdefault(key[start:], []).append(i)

    def find(self, path: str) -> int | None:
        """The place of the image that shares most of the path's end; None for none.

        What they share is all that one of them is called: of the path all, or of the image its key, so that one
        person's session is not taken for another's. Where either has no folder, or CR-FIQA's "images", which says
        nothing of a person, the name is enough. ValueError, naming both, where the path may mean two images.
        """
        parts = _without_suffix(path)
        for start in range(len(parts)):
            tail = parts[start:]
            found = self._places.get(tail, [])
            if tail != parts and not _says_nothing(parts):
                found = [i for i in found if self.keys[i] == tail or _says_nothing(self.keys[i])]
            found = [i for i in found if self.keys[i] == tail] or found
            if len(found) > 1:
                found = [i for i in found if self._has_suffix_of(path, i)] or found
            if len(found) > 1:
                one, other = (format_path(name_of(self._images[i])) for i in found[:2])
                raise FileFormatError(f"{path!r} may be {one} or {other}")
            if found:
                return found[0]
        return None

    def _has_suffix_of(self, path: str, place: int) -> bool:
        return os.path.splitext(name_of(self._images[place]))[1] == os.path.splitext(path)[1]


def _says_nothing(parts: tuple[str, ...]) -> bool:
    """The folder of it, of who is shown."""
    return len(parts) < 2 or parts[-2] == _FOLDER_OF_SCRIPTS


def _key(index: int, image: Source, shared: int) -> tuple[str, ...]:
    if isinstance(image, Encoded):
        return (f"{index:05d}",)
    name = name_of(image)
    parts = _without_suffix(name if os.path.isabs(name) else os.path.abspath(name))
    return parts[min(shared, len(parts) - 2) :]


def _without_suffix(path: str) -> tuple[str, ...]:
    parts = _parts(path)
    return (*parts[:-1], strip_image_suffix(parts[-1])) if parts else ()


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
