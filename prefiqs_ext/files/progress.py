"""How far a run has come, kept beside its files so that a later run can go on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from prefiqs_ext.exceptions import FileFormatError, InputError, MissingFileError
from prefiqs_ext.files.records import Status
from prefiqs_ext.utils.partial_file import PartialFile
from prefiqs_ext.utils.strict_json import JSON, build_dataclass, check_names, read_strict_json
from prefiqs_ext.utils.text import format_untrusted

_MOST_BYTES = 1 << 25  # of a state; it has the text of the settings in it, which may have 8 MiB


@dataclass(frozen=True)
class Progress:
    """What a run has written so far.

    Attributes:
        paths: Images whose records are written.
        rows: Rows of the table.
        columns: Numbers per embedding.
        sizes: Bytes of each output.
        digest: A digest of the paths, in order.
        counts: Faces, and images without one, by status. It counts every face, also where the table has one row per
            image.
    """

    paths: int = 0
    rows: int = 0
    columns: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def extend(self, path: str, *, rows: int, columns: int, statuses: Iterable[Status]) -> Progress:
        """Gives the progress after one more image, of which so many rows were added."""
        counts = dict(self.counts)
        for status in statuses:
            counts[status] = counts.get(status, 0) + 1
        return Progress(
            paths=self.paths + 1,
            rows=self.rows + rows,
            columns=columns,
            sizes=self.sizes,
            digest=_extend_digest(self.digest, path),
            counts=counts,
        )

    def grow(self, added: Mapping[str, int]) -> Progress:
        """Gives the progress after so many bytes were added to each output."""
        return replace(self, sizes={kind: self.sizes.get(kind, 0) + size for kind, size in added.items()})


@dataclass(frozen=True)
class RunState:
    """The content of FILE.part.state.

    Attributes:
        settings: What the rows are made with.
        progress: How far the run has come. The outputs may have more bytes than it says, never fewer.
    """

    settings: dict[str, JSON]
    progress: Progress

    @classmethod
    def read(cls, file: Path) -> RunState | None:
        """Reads a state; None if there is none, or nothing that `write` has written.

        Raises:
            FileAccessError: The file is there but cannot be read.
        """
        with suppress(MissingFileError, FileFormatError):
            return read_strict_json(file, "the state of a run", cls._from_json, most=_MOST_BYTES)
        return None

    @classmethod
    def _from_json(cls, values: object) -> RunState:
        named = check_names(values, ("settings", "done"), "a state")
        progress: Progress | None = build_dataclass(Progress, named["done"], "progress")
        if progress is None or not all(isinstance(each, dict) for each in (progress.sizes, progress.counts)):
            raise FileFormatError("sizes and counts by name")
        counts = (progress.paths, progress.rows, progress.columns, *progress.sizes.values(), *progress.counts.values())
        if not all(type(count) is int and count >= 0 for count in counts) or not _is_digest(progress.digest):
            raise FileFormatError("counts of 0 or more and a digest")
        return cls(settings=dict(named["settings"]), progress=progress)

    def write(self, file: Path) -> None:
        """Replaces the state; after a power cut there is the old one or the new one.

        Raises:
            FileAccessError: The file cannot be written.
        """
        new = PartialFile(file, ".new")
        try:
            new.truncate(0)
            new.write(json.dumps({"settings": self.settings, "done": asdict(self.progress)}).encode())
            new.complete()
        finally:
            new.discard()

    def check_same_run(self, part: str, settings: Mapping[str, JSON], paths: Iterable[str]) -> None:
        """Checks that a run with these settings and paths can go on from here.

        Args:
            part: FILE.part as a person reads it, for errors.
            settings: What the new run makes its rows with.
            paths: The images of the new run, in order. As many are taken as are done.

        Raises:
            InputError: Some setting differs, or the run does not begin with the same paths.
        """
        remedy = f"go on with the same, or delete {part}.state to begin anew"
        for name, value in settings.items():
            if self.settings.get(name) != value:
                made, given = (format_untrusted(repr(each)) for each in (self.settings.get(name), value))
                raise InputError(f"{part} was made with {name} {made}, not {given}: {remedy}")
        finished = self.progress.paths
        if _digest_paths(islice(paths, finished)) != self.progress.digest:
            raise InputError(f"{part} was made from other images than this run's first {finished}: {remedy}")


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{0,32}", value) is not None


def _digest_paths(paths: Iterable[str]) -> str:
    digest = ""
    for path in paths:
        digest = _extend_digest(digest, path)
    return digest


def _extend_digest(digest: str, path: str) -> str:
    """Extends a digest by one path, so that a resumed run can continue from the stored digest."""
    return blake2b(digest.encode() + os.fsencode(path), digest_size=16).hexdigest()
