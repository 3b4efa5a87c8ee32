"""The images of a run, one after another: files, members of archives, rows of Parquet files.

    paths (paths.py) -> InputImages (here; archives.py and parquet.py for what holds many) -> reading and scoring

An image is found before it is read, so that a run that goes on, or has only a share of the images, reads no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.files.archives import list_members
from prefiqs_ext.files.image import InputImage
from prefiqs_ext.files.parquet import list_rows, read_carried_schema
from prefiqs_ext.utils.suffixes import PARQUET, get_suffix, is_container

if TYPE_CHECKING:
    import pyarrow as pa

_COUNTED = 100_000  # paths that are counted before the work, so that progress can say how much is left
_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """One of several parts of equal size into which a run is split."""

    index: int
    """From 0."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads ``INDEX/COUNT``, such as 0/8 for the first of eight.

        Raises:
            InputError: It is no such text, or the index is not below the count.
        """
        found = _SHARD.fullmatch(text)
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if index >= count:
            raise InputError(f"expected INDEX/COUNT with an INDEX from 0 to COUNT - 1, such as 0/8, got {text!r}")
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class InputImages:
    """The images of files, archives and Parquet files. They are found as they are needed, and once.

    Args:
        paths: What :func:`prefiqs_ext.files.find_paths` gives.
        image_column: The column of Parquet files that has the images: encoded, as bytes or as a struct with `bytes`.
        shard: The part of the images to give. With as many files as parts or more, every `count`-th file is in a part,
            and an archive or a Parquet file counts as one; with fewer, every `count`-th image.
        carry: Whether images have the other columns of their Parquet file with them. All of a run must have the same.

    Attributes:
        total: How many images there are, if that is known before they are found.
        carried: The columns that are carried, if there are any.

    Raises:
        InputError: The first path is a Parquet file that has no such column.
        FileFormatError: It is damaged.
    """

    def __init__(
        self, paths: Iterable[str], *, image_column: str = "image", shard: Shard | None = None, carry: bool = False
    ) -> None:
        self._column = image_column
        self._shard = shard
        self.carried: pa.Schema | None = None
        rest = iter(paths)
        counted = list(islice(rest, max(_COUNTED, shard.count if shard else 0)))
        self._splits_files = shard is not None and len(counted) >= shard.count
        self.total = len(counted) if len(counted) < _COUNTED and not any(map(is_container, counted)) else None
        if shard is not None and self.total is not None:
            self.total = len(range(shard.index, self.total, shard.count))
        if carry and counted and get_suffix(counted[0]) == PARQUET:
            self.carried = read_carried_schema(counted[0], image_column)
        self._paths = chain(counted, rest)

    def __iter__(self) -> Iterator[InputImage]:
        """Finds one image after another."""
        if self._shard is None:
            return self._find(self._paths)
        if self._splits_files:
            return self._find(islice(self._paths, self._shard.index, None, self._shard.count))
        return islice(self._find(self._paths), self._shard.index, None, self._shard.count)

    def _find(self, paths: Iterable[str]) -> Iterator[InputImage]:
        for path in paths:
            if not is_container(path):
                yield InputImage(path)
            elif get_suffix(path) == PARQUET:
                yield from list_rows(path, self._column, self.carried)
            else:
                yield from list_members(path)
