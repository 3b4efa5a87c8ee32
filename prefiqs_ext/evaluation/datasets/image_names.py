"""Finds the image that a list, a table of scores or a saved embedding means by a name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prefiqs_ext.evaluation.datasets.sources import EncodedCrop, Source, get_name
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.files.folders import strip_image_suffix
from prefiqs_ext.utils.text import format_path

_FOLDER_OF_SCRIPTS = "images"
"""CR-FIQA's scripts put all images of a benchmark into this folder, so its name says nothing about the person."""


class Names:
    """Finds images by the ends of their paths.

    For example, data/ann/1.jpg is found as ann/1.jpg, and also as other/data/ann/1.jpg. Suffixes matter only if images
    differ in nothing else. The name of an image of a .bin is its number in five digits, as in CR-FIQA's scripts.

    Attributes:
        keys: Of each image, the parts of its path below the folder that holds all images, without the suffix. They have
            at least the image's own folder.
    """

    def __init__(self, images: Sequence[Source]) -> None:
        self._images = images
        folders = {os.path.dirname(get_name(image)) for image in images if not isinstance(image, EncodedCrop)}
        shared = len(_split_path(os.path.commonpath(map(os.path.abspath, folders)))) if folders else 0
        self.keys = [_make_key(i, image, shared) for i, image in enumerate(images)]
        self._places: dict[tuple[str, ...], list[int]] = {}
        for i, key in enumerate(self.keys):
            for start in range(len(key)):
                self._places.setdefault(key[start:], []).append(i)

    def find(self, path: str) -> int | None:
        """Find the image that shares most of the path's end: its place, or None.

        The shared end must be the whole path, or the whole key of the image. Otherwise ann/2/1.jpg could be taken for
        bob/2/1.jpg. If one of them has no folder, or only CR-FIQA's "images", which says nothing about the person, the
        file's name is enough.

        Raises:
            FileFormatError: The path may mean two images; the error names both.
        """
        parts = _split_without_suffix(path)
        for start in range(len(parts)):
            tail = parts[start:]
            found = self._places.get(tail, [])
            if tail != parts and not _names_no_person(parts):
                found = [i for i in found if self.keys[i] == tail or _names_no_person(self.keys[i])]
            found = [i for i in found if self.keys[i] == tail] or found
            if len(found) > 1:
                found = [i for i in found if self._has_suffix_of(path, i)] or found
            if len(found) > 1:
                one, other = (format_path(get_name(self._images[i])) for i in found[:2])
                raise FileFormatError(f"{path[:80]!r} may be {one} or {other}")
            if found:
                return found[0]
        return None

    def _has_suffix_of(self, path: str, place: int) -> bool:
        return os.path.splitext(get_name(self._images[place]))[1] == os.path.splitext(path)[1]


def _names_no_person(parts: tuple[str, ...]) -> bool:
    """Whether the folder says nothing about who is shown."""
    return len(parts) < 2 or parts[-2] == _FOLDER_OF_SCRIPTS


def _make_key(index: int, image: Source, shared: int) -> tuple[str, ...]:
    if isinstance(image, EncodedCrop):
        return (f"{index:05d}",)
    name = get_name(image)
    parts = _split_without_suffix(name if os.path.isabs(name) else os.path.abspath(name))
    return parts[min(shared, len(parts) - 2) :]


def _split_without_suffix(path: str) -> tuple[str, ...]:
    parts = _split_path(path)
    return (*parts[:-1], strip_image_suffix(parts[-1])) if parts else ()


def _split_path(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
