"""The files a run writes. They grow as FILE.part, get their names when they are complete, and survive a crash.

Beside FILE.part is FILE.part.state (progress.py). It is replaced after the parts are on the disk, and says how long
they were then. A run that goes on cuts the parts to those lengths and appends.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.files.arrow_table import ArrowTable, write_parquet
from prefiqs_ext.files.pipeline import ScoredFile
from prefiqs_ext.files.progress import Progress, RunState
from prefiqs_ext.files.records import (
    ENCODING,
    ERRORS,
    TableRow,
    choose_format,
    escape_line_ends,
    format_header,
    format_record,
    read_rows,
    select_records,
)
from prefiqs_ext.files.select_rows import Pick
from prefiqs_ext.utils.os_errors import explain_read_errors, explain_write_errors
from prefiqs_ext.utils.partial_file import (
    NPY_HEADER_BYTES,
    PartialFile,
    StandardOutput,
    add_suffix,
    format_npy_header,
)
from prefiqs_ext.utils.strict_json import JSON
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.text import format_path

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_WAITING = 1024  # images whose rows are written together
_SAVE_S = 0.5  # what kill -9, or a power cut, may cost, if saving is quick
_SAVE_SHARE = 20  # at most one part in so many of the time goes into saving, on slow disks too


class Writer:
    """Writes the table and the embeddings of one run.

    It is a context manager. A run that ends before :meth:`finish` leaves its files as FILE.part.

    Args:
        table: A .csv, .jsonl, .txt or .parquet file; None for csv on standard output, which cannot be resumed.
        embeddings: A .npy file for float32 [rows of the table, d]; a row without an embedding is NaN. Line i of the
            .paths file beside it is the path of row i.
        settings: What the rows are made with. A run that goes on must have the same.
        paths: The images of the run, in order. A run that goes on must begin with the same; so many are taken.
        resume: Whether to continue from FILE.part. If there is none, the run starts at the beginning.
        pick: The rows to keep; None keeps them all. FILE.part has all rows.
        embedding_column: Whether a .parquet file has a column of embeddings.
        carried: The columns of the input that a .parquet file has too.

    Attributes:
        progress: What is written so far, by an earlier run too.

    Raises:
        MissingPackageError: pyarrow, which writes .parquet, is not installed.
        InputError: A suffix is none of these; or a FILE.part belongs to another run, or is not to be resumed.
        FileAccessError: A file cannot be written, or another process is writing it.
    """

    def __init__(
        self,
        table: Path | None,
        embeddings: Path | None = None,
        *,
        settings: Mapping[str, JSON],
        paths: Iterable[str],
        resume: bool = False,
        pick: Pick | None = None,
        embedding_column: bool = False,
        carried: pa.Schema | None = None,
    ) -> None:
        self._format = choose_format(table)
        self._arrow = None
        if self._format == "parquet":
            if embeddings is not None:
                raise InputError("a .parquet table has its embeddings in a column: give --embedding-column, no .npy")
            self._arrow = ArrowTable(carried, with_embeddings=embedding_column)
        elif embedding_column:
            raise InputError("a column of embeddings needs an output that ends in .parquet; for others there is a .npy")
        if embeddings is not None and get_suffix(embeddings) != ".npy":
            raise InputError(f"expected a .npy file for embeddings, got {format_path(str(embeddings))}")
        self._settings: dict[str, JSON] = {**settings, "format": self._format, "embeddings": embeddings is not None}
        self._settings["embedding_column"] = embedding_column
        self._pick = pick
        self._state_file = None if table is None else add_suffix(table, ".part.state")
        self._next_save = time.monotonic() + _SAVE_S
        self._finishing = self._finished = False
        self.progress = Progress()
        self._waiting: list[ScoredFile] = []
        self._parts: dict[str, PartialFile | StandardOutput] = {}
        files = {"table": table}
        if embeddings is not None:
            files |= {"embeddings": embeddings, "paths": embeddings.with_suffix(".paths")}
        try:
            for kind, file in files.items():  # the table first: its lock is the run's
                self._parts[kind] = PartialFile(file) if file or pick else StandardOutput()
            self._go_on(paths, resume)
        except BaseException:
            self._close()
            raise

    def _go_on(self, paths: Iterable[str], resume: bool) -> None:
        """Cuts the parts to where the earlier run surely was; to nothing if there is none."""
        earlier = self._read_state()
        if earlier is not None:
            part = format_path(str(self._state_file)).removesuffix(".state")
            if not resume:
                raise InputError(
                    f"{part} has {earlier.progress.paths} finished paths of an earlier run: go on with --resume, or "
                    f"delete {part}.state to begin anew"
                )
            earlier.check_same_run(part, self._settings, paths)
            for kind, each in self._parts.items():
                size = earlier.progress.sizes.get(kind, 0)
                each.take_back(size)  # as long as the state is there, so is each part, under its own name or its file's
                if each.size < size:
                    raise InputError(
                        f"{part}, or a file beside it, has lost its end: delete {part}.state to begin anew"
                    )
            self.progress = earlier.progress
        for kind, each in self._parts.items():
            each.truncate(self.progress.sizes.get(kind, 0))

    def _read_state(self) -> RunState | None:
        return None if self._state_file is None else RunState.read(self._state_file)

    def add(self, scored: ScoredFile) -> None:
        """Adds the records of one image.

        Raises:
            FileAccessError: An output cannot be written; the error names it.
        """
        self._waiting.append(scored)
        if time.monotonic() > self._next_save:
            self.save()
        elif len(self._waiting) >= _MOST_WAITING:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Writes the images that wait. An interrupt leaves all of them done or none."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        kept = [scored._replace(records=select_records(self._format, scored.records)) for scored in waiting]
        columns = waiting[0].embeddings.shape[1]
        data = self._encode(kept, columns, begin=not self.progress.paths)
        for kind, part in self._parts.items():
            part.write(data[kind])
        progress = self.progress
        for scored, selected in zip(waiting, kept, strict=True):
            statuses = [record.status for record in scored.records]
            progress = progress.extend(scored.path, rows=len(selected.records), columns=columns, statuses=statuses)
        self.progress = progress.grow({kind: len(data[kind]) for kind in self._parts})

    def _encode(self, kept: Sequence[ScoredFile], columns: int, *, begin: bool) -> dict[str, bytes]:
        """Encodes images for each kind of part. The first ones bring what stands at the beginning of a file."""
        if self._arrow is None:
            lines = (format_record(self._format, record) for scored in kept for record in scored.records)
            table = _encode_text("".join([format_header(self._format) if begin else "", *lines]))
        else:
            table = (self._arrow.encode_schema(columns) if begin else b"") + self._arrow.encode(kept, columns)
        paths = "".join(_format_path_line(scored.path) * len(scored.records) for scored in kept)
        vectors = (scored.embeddings[: len(scored.records)].numpy().astype("<f4").tobytes() for scored in kept)
        header = format_npy_header(0, columns) if begin else b""
        return {"table": table, "paths": _encode_text(paths), "embeddings": b"".join([header, *vectors])}

    def save(self) -> None:
        """Brings everything to the disk, so that a run that is killed, or whose power is cut, can go on from here."""
        start = time.monotonic()
        self._write_waiting()
        for part in self._parts.values():
            part.sync()  # before the state says that it is there
        if self._state_file is not None and self.progress.paths:
            RunState(self._settings, self.progress).write(self._state_file)
        end = time.monotonic()
        self._next_save = end + max(_SAVE_S, _SAVE_SHARE * (end - start))

    def finish(self) -> int:
        """Makes the pick, or the Parquet file, and gives the files their names.

        Returns:
            The number of rows of the table.

        Raises:
            FileAccessError: A file cannot be written or renamed. The run can go on later.
        """
        self.save()
        embeddings = self._parts.get("embeddings")
        if isinstance(embeddings, PartialFile):
            embeddings.overwrite_start(format_npy_header(self.progress.rows, self.progress.columns))
        if self._pick is None and self._arrow is None:
            finished, rows = self._parts, self.progress.rows
        else:
            finished, rows = self._write_final()
        self._finishing = True  # from here on there is nothing to save
        try:
            # The table last: where it is, the others are complete too.
            for kind in sorted(finished):  # embeddings, paths, table
                finished[kind].complete()
            if self._state_file is not None:
                with explain_write_errors(format_path(str(self._state_file))):
                    self._state_file.unlink(missing_ok=True)
            self._finished = True
            for kind, part in self._parts.items():
                if finished[kind] is not part:
                    part.discard()
        finally:
            # All are locked up to here, so that no other run takes a name back before the state is gone.
            for part in (*finished.values(), *self._parts.values()):
                part.close()
        return rows

    def _write_final(self) -> tuple[dict[str, PartialFile | StandardOutput], int]:
        """Writes final files beside the parts, which stay; gives these files and the number of rows."""
        outputs: dict[str, PartialFile | StandardOutput] = {}
        try:
            for kind, part in self._parts.items():
                if self._pick is None and kind != "table":
                    continue  # the part is what it should be
                file = part.file if isinstance(part, PartialFile) else None
                outputs[kind] = PartialFile(file, ".final") if file else StandardOutput()
                outputs[kind].truncate(0)
            rows = self._write_rows(outputs) if self._arrow is None else self._write_parquet(outputs["table"])
            return {**self._parts, **outputs}, rows
        except BaseException:
            for output in outputs.values():
                with suppress(OSError):
                    output.discard()
            raise

    def _write_parquet(self, output: PartialFile | StandardOutput) -> int:
        """Writes the table, picked if there is a pick, and gives the number of its rows."""
        table = self._parts["table"]
        assert isinstance(output, PartialFile)
        if not table.size:
            return 0
        with explain_read_errors("the unfinished table"):
            table.stream.seek(0)
        with explain_write_errors(format_path(str(output.part))):
            return write_parquet(table.stream, output.stream, self._pick)

    def _write_rows(self, outputs: Mapping[str, PartialFile | StandardOutput]) -> int:
        """Writes the picked rows of a text table and gives their number."""
        assert self._pick is not None
        embeddings = outputs.get("embeddings")
        outputs["table"].write(_encode_text(format_header(self._format)))
        if embeddings is not None:
            embeddings.write(format_npy_header(0, self.progress.columns))
        count = 0
        for place, row in self._pick.choose(self._read_table()):
            outputs["table"].write(_encode_text(row.text))
            if embeddings is not None:
                embeddings.write(self._read_embedding(place))
                outputs["paths"].write(_encode_text(_format_path_line(row.path)))
            count += 1
        if isinstance(embeddings, PartialFile):
            embeddings.overwrite_start(format_npy_header(count, self.progress.columns))
        return count

    def _read_table(self) -> Iterator[TableRow]:
        stream = self._parts["table"].stream
        with explain_read_errors("the unfinished table"):
            stream.seek(0)
            text = io.TextIOWrapper(stream, ENCODING, ERRORS, newline="")
            try:
                yield from read_rows(self._format, text)
            finally:
                text.detach()  # or it would close the stream

    def _read_embedding(self, row: int) -> bytes:
        size = 4 * self.progress.columns
        with explain_read_errors("the unfinished embeddings"):
            return os.pread(self._parts["embeddings"].stream.fileno(), size, NPY_HEADER_BYTES + row * size)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._finished:
            with suppress(OSError):  # a full disk: the state saved before stays
                if not self._finishing:
                    self.save()
            self._close()

    def _close(self) -> None:
        for part in self._parts.values():
            part.close()


def _encode_text(text: str) -> bytes:
    return text.encode(ENCODING, ERRORS)


def _format_path_line(path: str) -> str:
    return escape_line_ends(path) + "\n"
