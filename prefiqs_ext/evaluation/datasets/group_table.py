"""Reads a table that says which group each image belongs to: a skin tone, an age class, a camera."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefiqs_ext.evaluation.datasets.crfiqa import IMAGE_LIST
from prefiqs_ext.evaluation.datasets.image_names import Names
from prefiqs_ext.evaluation.datasets.sources import Source
from prefiqs_ext.exceptions import FileFormatError, InputError
from prefiqs_ext.utils.regular_file import read_lines
from prefiqs_ext.utils.tell import Tell, tell_nobody
from prefiqs_ext.utils.text import format_path, format_untrusted

ALL_IMAGES = "all images"
"""What tables call all images together, beside the groups."""
NO_GROUP = "no group"
"""What tables call the images that have no group."""
_KEYS = ("path", "person")
_MOST_GROUPS = 100  # a column with more different texts names images or people, not groups
_LONGEST_LABEL = 60  # characters, which a table and a legend have room for


class Groups(NamedTuple):
    """Which group each image belongs to.

    Attributes:
        column: The heading of the column that the groups come from.
        labels: The names of the G groups, sorted; NO_GROUP is the last if there are images without a group.
        of_image: [N] the place of each image's group in `labels`.
    """

    column: str
    labels: list[str]
    of_image: NDArray[np.int64]


def read_groups(
    file: str | os.PathLike[str],
    images: Sequence[Source],
    data: str | os.PathLike[str],
    column: str | None = None,
    tell: Tell = tell_nobody,
) -> Groups:
    """Read a CSV table of groups.

    The first line has the headings. The column `path` names an image by the end of its path, see `Names`. Without it,
    the column `person` names a person's folder, and all images in it get the group. An empty cell means no group, as
    does an image that the table does not name.

    Args:
        file: The table.
        images: The N images.
        data: Where they were read from. The column `person` needs a folder with one folder per person.
        column: The heading of the column with the groups. None: the only column other than `path` and `person`.
        tell: Gets one line that counts the lines of the table that name none of the images; they are ignored.

    Raises:
        InputError: A table by person, and data that are no folder of people.
        FileFormatError: A column is missing or is there twice, a line has more or fewer cells, an image has two
            groups, a name may mean two images, a group's name is not printable or too long, there are more than 100
            groups, or none of the images has one.
        FileAccessError: The file is missing or cannot be read.
    """
    name = format_path(os.fspath(file))
    rows = _read_rows(file, name)
    header = [cell.strip() for cell in next(rows, (0, []))[1]]
    key, at, column, label_at = _find_columns(name, header, column)
    finder = _ImageFinder(images) if key == "path" else _PersonFinder(images, data, name)
    assigned = _Assigned(images=len(images))
    for number, row in rows:
        where = f"{name}:{number}"
        if len(row) != len(header):
            raise FileFormatError(f"{where}: expected {len(header)} cells, got {len(row)}")
        label = row[label_at].strip()
        _check_label(where, label)
        try:
            places = finder.find(row[at].strip())
        except ValueError as error:
            raise FileFormatError(f"{where}: {error}") from None
        assigned.add(where, row[at], places, label or NO_GROUP)
    return assigned.make_groups(name, column, tell)


def _read_rows(file: str | os.PathLike[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """Read the rows, each with the number of the line on which it ends."""
    number = 0

    def iterate_lines() -> Iterator[str]:
        nonlocal number
        for number, line in read_lines(file):  # noqa: B007, the number is for errors
            yield f"{line}\n"

    try:
        for row in csv.reader(iterate_lines(), strict=True):
            yield number, row
    except csv.Error as error:
        raise FileFormatError(f"{name}:{number}: expected a CSV table; {error}") from None


def _find_columns(name: str, header: list[str], column: str | None) -> tuple[str, int, str, int]:
    """Find the column that names images or people, and the one with the groups, each with its place."""
    known = format_untrusted(", ".join(header), 400) or "none"
    key = next((key for key in _KEYS if key in header), None)
    if key is None:
        raise FileFormatError(f"{name}: expected a heading with a column path or person; the columns are {known}")
    others = [each for each in header if each and each not in _KEYS]
    if column is None:
        if len(others) != 1:
            what = "no other column" if not others else "several columns"
            remedy = "" if not others else ", and a name of one (group_by, --group-by)"
            raise FileFormatError(
                f"{name}: expected a column with the groups beside {key}{remedy}; there is {what}: {known}"
            )
        column = others[0]
    elif column not in others:
        raise FileFormatError(f"{name}: no column {format_untrusted(column)} with groups; the columns are {known}")
    for each in (key, column):
        if header.count(each) > 1:
            raise FileFormatError(f"{name}: expected each column once, got {format_untrusted(each)} twice")
    _check_label(name, column)
    return key, header.index(key), column, header.index(column)


def _check_label(where: str, label: str) -> None:
    if not label.isprintable() or len(label) > _LONGEST_LABEL:
        raise FileFormatError(
            f"{where}: expected the name of a group in UTF-8, without control characters and of at most "
            f"{_LONGEST_LABEL} characters, got {label[:80]!r}"
        )
    if label == ALL_IMAGES:
        raise FileFormatError(f"{where}: {ALL_IMAGES!r} is what tables call all images together; rename the group")


class _ImageFinder:
    """Finds the image that a path means."""

    def __init__(self, images: Sequence[Source]) -> None:
        self._names = Names(images)

    def find(self, path: str) -> list[int]:
        place = self._names.find(path)
        return [] if place is None else [place]


class _PersonFinder:
    """Finds the images in a person's folder."""

    def __init__(self, images: Sequence[Source], data: str | os.PathLike[str], table: str) -> None:
        self._places: dict[str, list[int]] = {}
        is_people = os.path.isdir(data) and not os.path.isfile(os.path.join(data, IMAGE_LIST))
        for place, image in enumerate(images):
            if not (is_people and isinstance(image, str)):
                raise InputError(
                    f"{table}: a table by person is for a folder with one folder per person, and "
                    f"{format_path(os.fspath(data))} is none: name the images in a column path"
                )
            self._places.setdefault(os.path.relpath(image, data).split(os.sep)[0], []).append(place)

    def find(self, person: str) -> list[int]:
        return self._places.get(person, [])


@dataclass
class _Assigned:
    """The groups that the lines of a table have given to images.

    Attributes:
        images: How many images there are.
        labels: The group of each image that has been named, by its place.
        found: The names of the groups, in order of their first line.
        lines: How many lines there were.
        strangers: How many of these name none of the images.
        first_stranger: The first of such names.
    """

    images: int
    labels: dict[int, str] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    lines: int = 0
    strangers: int = 0
    first_stranger: str = ""

    def add(self, where: str, key: str, places: list[int], label: str) -> None:
        """Give a group to the images at these places."""
        self.lines += 1
        if not places:
            self.first_stranger = self.first_stranger or key
            self.strangers += 1
            return
        self.found.add(label)
        if len(self.found) > _MOST_GROUPS:
            raise FileFormatError(f"{where}: expected at most {_MOST_GROUPS} different groups, found more")
        for place in places:
            other = self.labels.setdefault(place, label)
            if other != label:
                raise FileFormatError(f"{where}: {key[:80]!r} is in two groups: {label!r}, and {other!r} before")

    def make_groups(self, name: str, column: str, tell: Tell) -> Groups:
        """Make the groups of all images, of what the table called `name` said."""
        strangers = f"{self.strangers} lines that name none of the images, the first {self.first_stranger[:80]!r}"
        if not self.found - {NO_GROUP}:
            got = strangers if self.strangers else f"{self.lines} lines without a group" if self.lines else "no line"
            raise FileFormatError(f"{name}: expected groups of the images, got {got}")
        if self.strangers:
            tell(f"{name}: passed over {strangers}")
        labels = sorted(self.found - {NO_GROUP})
        if len(self.labels) < self.images or NO_GROUP in self.found:
            labels.append(NO_GROUP)
        places = {label: place for place, label in enumerate(labels)}
        of_image = [places[self.labels.get(image, NO_GROUP)] for image in range(self.images)]
        return Groups(column, labels, np.array(of_image, np.int64))
