"""The files a run leaves: they grow as FILE.part, get their names when complete, and are gone on with after a crash.

Beside FILE.part lies FILE.part.state: how many paths are done and how long each part was then, and what the rows were
made with. It is replaced after the parts are written, so going on means cutting the parts to those lengths.
"""

from __future__ import annotations

import heapq
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from prefiqs_ext.calibration import Calibration
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.files import records as _rows
from prefiqs_ext.files.pipeline import Scored
from prefiqs_ext.files.records import Format
from prefiqs_ext.utils.partial_file import NPY_HEADER_BYTES, PartialFile, StandardOutput, beside, npy_header
from prefiqs_ext.utils.text import format_path

_SAVE_S = 0.5  # what kill -9, or a power cut, may cost, if saving is quick
_SAVE_SHARE = 20  # at most one part in so many of the time goes into saving, on slow disks too


class Pick(NamedTuple):
    """Which rows a finished table keeps: the `top` best, best first, or those of quality below `below`, in order."""

    top: int | None = None
    below: float | None = None


@dataclass(frozen=True)
class Done:
    """What is written: paths, rows of the table, columns of the embeddings, bytes of each file, a digest of the paths,
    rows by status (of every face, also where a table has one row a path)."""

    paths: int = 0
    rows: int = 0
    columns: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    counts: dict[str, int] = field(default_factory=dict)


class Writer:
    """The table and the embeddings of one run. A context manager; what is not finished then stays as FILE.part.

    Args:
        table: .csv, .jsonl or .txt; None: csv to standard output, which cannot be resumed.
        embeddings: .npy, float32 [rows of the table, d]; a row without embedding is NaN. Line i of the .paths file
            beside it is the path of row i.
        settings: what the rows are made with, JSON values; a run that goes on must have the same.
        paths: all paths of the run, in order; a run that goes on must begin with the same.
        resume: go on where FILE.part ends. Where there is none, begin.
        pick: the rows to keep, None: all. FILE.part has all rows.
        calibration: the scale of a column `score`; None: there is no such column.

    Raises:
        ValueError: a suffix that is none of these; a FILE.part that is in use, not to be resumed, or of another run.
        OSError: a file that cannot be written.
    """

    def __init__(
        self,
        table: Path | None,
        embeddings: Path | None = None,
        *,
        settings: dict[str, Any],
        paths: Sequence[str],
        resume: bool = False,
        pick: Pick | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self._form = form_of(table)
        if embeddings is not None and embeddings.suffix.lower() != ".npy":
            raise InputError(f"expected a .npy file for embeddings, got {format_path(str(embeddings))}")
        self._settings = {**settings, "format": self._form, "embeddings": embeddings is not None}
        self._pick = pick
        self._calibration = calibration
        self._state = None if table is None else beside(table, ".part.state")
        self._next_save = time.monotonic() + _SAVE_S
        self._finishing = self._finished = False
        self.done = Done()
        """What is written so far, an earlier run's included."""
        self._parts: dict[str, PartialFile | StandardOutput] = {}
        files = {"table": table}
        if embeddings is not None:
            files |= {"embeddings": embeddings, "paths": embeddings.with_suffix(".paths")}
        try:
            if resume:
                self._take_back(files)
            for kind, file in files.items():
                self._parts[kind] = PartialFile(file) if file or pick else StandardOutput()
            self._resume(paths, resume)
        except BaseException:
            self._close()
            raise

    def _resume(self, paths: Sequence[str], resume: bool) -> None:
        earlier = self._earlier()
        if earlier is not None:
            settings, done = earlier
            part = format_path(str(self._state)).removesuffix(".state")
            if not resume:
                raise InputError(
                    f"{part} has {done.paths} finished paths of an earlier run: go on with --resume, or delete "
                    f"{part}.state to begin anew"
                )
            other = f"go on with the same, or delete {part}.state to begin anew"
            for name, value in self._settings.items():
                if settings.get(name) != value:
                    raise InputError(f"{part} was made with {name} {settings.get(name)!r}, not {value!r}: {other}")
            if _digest(paths[: done.paths]) != done.digest:
                raise InputError(f"{part} was made from other files than this run's first {done.paths}: {other}")
            if any(part.size < done.sizes[kind] for kind, part in self._parts.items()):
                raise InputError(f"{part}, or a file beside it, has lost its end: delete {part}.state to begin anew")
            self.done = done
        for kind, each in self._parts.items():
            each.cut(self.done.sizes.get(kind, 0))

    def _take_back(self, files: dict[str, Path | None]) -> None:
        """Of a run that ended while it gave the files their names, those that have theirs are parts again."""
        earlier = self._earlier()
        for kind, file in files.items():
            if earlier is None or file is None or beside(file, ".part").exists():
                continue
            with suppress(OSError):
                if file.stat().st_size == earlier[1].sizes.get(kind):
                    os.replace(file, beside(file, ".part"))

    def _earlier(self) -> tuple[dict[str, Any], Done] | None:
        try:
            state = json.loads(self._state.read_bytes()) if self._state is not None else {}
            return state["settings"], Done(**state["done"])
        except (
            FileNotFoundError,
            NotADirectoryError,
            ValueError,
            TypeError,
            KeyError,
        ):  # none, or nothing that this class wrote
            return None

    def add(self, scored: Scored) -> None:
        """Writes one path's rows. OSError says what could not be written."""
        kept = _rows.select_records(self._form, scored.rows)
        columns = scored.embeddings.shape[1]
        begin = not self.done.paths
        data = {
            "table": "".join(
                [
                    _rows.format_header(self._form, self._calibration) if begin else "",
                    *(_rows.format_record(self._form, row, self._calibration) for row in kept),
                ]
            ),
            "paths": (_rows.escape_line_ends(scored.path) + "\n") * len(kept),
        }
        new = {kind: text.encode(_rows.ENCODING, _rows.ERRORS) for kind, text in data.items()}
        vectors = scored.embeddings[: len(kept)].numpy().astype("<f4").tobytes()
        new["embeddings"] = (npy_header(0, columns) if begin else b"") + vectors
        sizes = dict(self.done.sizes)
        for kind, part in self._parts.items():
            part.write(new[kind])
            sizes[kind] = sizes.get(kind, 0) + len(new[kind])
        counts = dict(self.done.counts)
        for row in scored.rows:
            counts[row.status] = counts.get(row.status, 0) + 1
        # One assignment, so that an interrupt leaves a path done or not.
        digest = _link(self.done.digest, scored.path)
        self.done = Done(self.done.paths + 1, self.done.rows + len(kept), columns, sizes, digest, counts)
        if time.monotonic() > self._next_save:
            self.save()

    def save(self) -> None:
        """A run that is killed, or whose power is cut, can go on from here."""
        start = time.monotonic()
        for part in self._parts.values():
            part.sync()  # before the state says that it is there
        if self._state is not None and self.done.paths:
            new = PartialFile(self._state, ".new")
            new.cut(0)
            new.write(json.dumps({"settings": self._settings, "done": asdict(self.done)}).encode())
            new.complete()
        end = time.monotonic()
        self._next_save = end + max(_SAVE_S, _SAVE_SHARE * (end - start))

    def finish(self) -> None:
        """Makes the pick and gives the files their names."""
        self.save()
        embeddings = self._parts.get("embeddings")
        if isinstance(embeddings, PartialFile):
            embeddings.patch(npy_header(self.done.rows, self.done.columns))
        picked = self._picked(self._pick) if self._pick is not None else self._parts
        self._finishing = True  # from here on there is nothing to save
        # The table last: where it is, the others are complete too.
        for kind in sorted(picked):  # embeddings, paths, table
            picked[kind].complete()
        # As long as it is there, so is each part, under its own name or its file's.
        if self._state is not None:
            self._state.unlink(missing_ok=True)
        self._finished = True
        for kind, part in self._parts.items():
            if picked[kind] is not part:
                part.discard()
        self._close()

    def _picked(self, pick: Pick) -> dict[str, PartialFile | StandardOutput]:
        table = self._parts["table"]
        assert isinstance(table, PartialFile)
        files = {kind: part.file for kind, part in self._parts.items() if isinstance(part, PartialFile)}
        outs = {kind: PartialFile(file, ".pick") if file else StandardOutput() for kind, file in files.items()}
        for out in outs.values():
            out.cut(0)
        outs["table"].write(_rows.format_header(self._form, self._calibration).encode())
        if "embeddings" in outs:
            outs["embeddings"].write(npy_header(0, self.done.columns))
        count = 0
        table.stream.seek(0)
        text = io.TextIOWrapper(table.stream, _rows.ENCODING, _rows.ERRORS, newline="")
        for index, record in _chosen(_rows.read_records(self._form, text), pick):
            outs["table"].write(record.text.encode(_rows.ENCODING, _rows.ERRORS))
            if "embeddings" in outs:
                outs["embeddings"].write(self._vector(index))
                outs["paths"].write((_rows.escape_line_ends(record.path) + "\n").encode(_rows.ENCODING, _rows.ERRORS))
            count += 1
        text.detach()
        if "embeddings" in outs:
            embeddings = outs["embeddings"]
            assert isinstance(embeddings, PartialFile)
            embeddings.patch(npy_header(count, self.done.columns))
        return outs

    def _vector(self, row: int) -> bytes:
        size = 4 * self.done.columns
        stream = self._parts["embeddings"].stream
        return os.pread(stream.fileno(), size, NPY_HEADER_BYTES + row * size)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._finished:
            with suppress(OSError):  # a full disk: the state saved before stays
                if not self._finishing:
                    self.save()
            self._close()

    def _close(self) -> None:
        # A run that failed before its first row leaves nothing; parts that an earlier run has to go on with stay.
        empty = not self._finished and not self.done.paths and self._earlier() is None
        for part in self._parts.values():
            part.discard() if empty else part.close()


def form_of(table: Path | None) -> Format:
    """csv, jsonl or txt by the suffix; ValueError for another."""
    if table is None:
        return "csv"
    for form in _rows.FORMATS:
        if table.suffix.lower() == f".{form}":
            return form
    raise InputError(f"expected an output that ends in .csv, .jsonl or .txt, got {format_path(str(table))}")


def _digest(paths: Iterable[str]) -> str:
    value = ""
    for path in paths:
        value = _link(value, path)
    return value


def _link(value: str, path: str) -> str:
    """A digest that can go on from what it was."""
    return blake2b(value.encode() + os.fsencode(path), digest_size=16).hexdigest()


def _chosen(records: Iterable[_rows.TableRecord], pick: Pick) -> Iterator[tuple[int, _rows.TableRecord]]:
    """Rows with their places; equal qualities in the order of the table. Holds `top` rows, or one."""
    assessed: Iterable[tuple[float, int, _rows.TableRecord]]
    assessed = ((record.quality, -index, record) for index, record in enumerate(records) if record.quality is not None)
    if pick.top is not None:
        assessed = heapq.nlargest(pick.top, assessed)
    for quality, index, record in assessed:
        if pick.below is None or quality < pick.below:
            yield -index, record
