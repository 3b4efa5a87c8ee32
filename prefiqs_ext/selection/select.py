"""From tables to a smaller one: the steps in order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputError
from prefiqs_ext.files.arrow_table import EMBEDDING, HASH
from prefiqs_ext.selection.choose import FaceStore
from prefiqs_ext.selection.output import TemplateWriter, choose_writer
from prefiqs_ext.selection.tables import Table, check_column, is_binary, is_text, open_tables
from prefiqs_ext.utils.atomic_write import atomic_write
from prefiqs_ext.utils.partial_file import StandardOutput
from prefiqs_ext.utils.suffixes import CONTAINERS, get_suffix
from prefiqs_ext.utils.text import format_path

PERSON = "person"
"""The group that is no column: the folder that an image lies in, the last one of its path."""
_FOLDER = r"(?P<name>[^/]*)/[^/]*$"
# The last "folder" of an image in an archive or a Parquet file may be that file, which is no person.
_NO_PERSON = rf"^\.{{0,2}}$|(?i)({'|'.join(map(re.escape, sorted(CONTAINERS)))})$"


class Counts(NamedTuple):
    """What became of the rows of the tables."""

    rows: int
    """All rows."""
    faces: int
    """Those with the status ok."""
    duplicates: int
    """Those of these that were dropped as duplicates."""
    ungrouped: int
    """Those of the others whose column to group by is empty."""
    groups: int
    """Groups with a row that is kept."""
    kept: int
    """Rows that are kept."""


class Selection:
    """Which rows of tables are to be kept. The constructor checks what can be known before the work.

    Args:
        tables: Files that `prefiqs score` has written, .csv or .parquet, all with the same columns.
        output: The .csv, .parquet or .txt file to write; None for csv on standard output.
        best: How many rows of highest score are kept of each group. Equal scores are in the order of path and face.
        per: The column whose equal values make a group. "person" is the folder that an image lies in, the last one of
            its path, unless the tables have a column of this name.
        least_score: Rows with a lower score are left out. None: none is.
        near: Of faces of one group whose embeddings have this cosine or a higher one, the best alone is kept. None: all
            count.
        templates: The .parquet file for one embedding of each group: the sum of score x embedding over the rows that
            are kept, L2-normalised. None: none is made.

    Raises:
        InputError: A suffix is none of these.
        FileFormatError: A table is no such table or lacks a column, or tables differ in their columns.
        FileAccessError: A table cannot be read.
    """

    def __init__(
        self,
        tables: Sequence[str],
        output: Path | None,
        *,
        best: int,
        per: str,
        least_score: float | None = None,
        near: float | None = None,
        templates: Path | None = None,
    ) -> None:
        self._write = choose_writer(output)
        if templates is not None and get_suffix(templates) != ".parquet":
            raise InputError(f"expected templates in a file that ends in .parquet, got {format_path(str(templates))}")
        self._tables, self._output, self._templates = open_tables(tables), output, templates
        self._best, self._per, self._near = best, per, near
        self._least_score = -np.inf if least_score is None else least_score
        first = self._tables[0]
        names = first.schema.names
        self.by_folder = per == PERSON and PERSON not in names
        if not self.by_folder:
            check_column(first, per, lambda kind: is_text(kind) or pa.types.is_integer(kind), "texts or whole numbers")
        self.finds_duplicates = HASH in names
        """Whether the tables tell by a hash which images are the same."""
        if self.finds_duplicates:
            check_column(first, HASH, lambda kind: is_text(kind) or is_binary(kind), "bytes")
        self._dimensions = None if near is None and templates is None else _find_dimensions(first)

    def run(self) -> Counts:
        """Chooses the rows and writes them, in the order of the tables.

        Raises:
            FileFormatError: A table is damaged, or a row with the status ok lacks what it must have.
            InputError: A path lies in no person's folder, or the output cannot hold a name.
            FileAccessError: A table cannot be read or changes meanwhile, or the output cannot be written.
            OutOfMemoryError: The temporary folder is too small to sort the rows.
        """
        with ExitStack() as stack:
            # Places that cannot be written are found before the work.
            file = StandardOutput() if self._output is None else stack.enter_context(atomic_write(str(self._output)))
            add_template = None
            if self._templates is not None and self._dimensions is not None:
                target = stack.enter_context(atomic_write(str(self._templates)))
                add_template = stack.enter_context(TemplateWriter(target, self._dimensions)).add
            rows = found = 0
            with FaceStore(self._dimensions) as faces:
                for table in self._tables:
                    for batch in table.read(self._list_columns()):
                        new = self._prepare(table, batch, rows)
                        faces.add(new)
                        rows, found = rows + len(batch), found + len(new)
                choice = faces.choose(rows, self._best, self._least_score, self._near, add_template)
            self._write(file, self._tables[0].schema, self._take(choice.kept))
        return Counts(rows, found, choice.duplicates, choice.ungrouped, choice.groups, int(choice.kept.sum()))

    def _list_columns(self) -> list[str]:
        wanted = ["path", "face", "status", "score"]
        wanted += [] if self.by_folder else [self._per]
        wanted += [HASH] if self.finds_duplicates else []
        wanted += [] if self._dimensions is None else [EMBEDDING]
        return list(dict.fromkeys(wanted))

    def _prepare(self, table: Table, batch: pa.RecordBatch, start: int) -> pa.Table:
        """Makes what a FaceStore takes of those rows of a batch that have the status ok.

        Args:
            table: Where they are from.
            batch: Rows of the table.
            start: How many rows come before them in all tables.
        """
        places = pa.array(np.arange(start, start + len(batch)))
        is_ok = pc.fill_null(pc.equal(_to_bytes(batch["status"]), b"ok"), False)
        batch, places = batch.filter(is_ok), places.filter(is_ok)
        path, score = _to_bytes(batch["path"]), batch["score"].cast(pa.float32())
        _refuse_rows(table, path, path.is_null(), "a path")
        _refuse_rows(table, path, batch["face"].is_null(), "the number of a face")
        _refuse_rows(table, path, pc.invert(pc.fill_null(pc.is_finite(score), False)), "a finite score")
        if self._templates is not None:
            _refuse_rows(table, path, pc.less_equal(score, 0), "a score above 0, which weighs it")
        columns = {
            "place": places,
            "person": self._find_folders(table, path) if self.by_folder else _drop_empty(_to_bytes(batch[self._per])),
            # A path stands for a content that is not known: the same face in two tables is a duplicate, too.
            "content": pc.coalesce(batch[HASH].cast(pa.binary()), path) if self.finds_duplicates else path,
            "face": batch["face"].cast(pa.int64(), safe=False),
            "path": path,
            "score": score,
        }
        if self._dimensions is not None:
            columns[EMBEDDING] = batch[EMBEDDING].cast(pa.list_(pa.float32(), self._dimensions))
            _refuse_rows(table, path, pa.array(~_has_direction(columns[EMBEDDING])), "an embedding of finite length")
        return pa.table(columns)

    def _find_folders(self, table: Table, path: pa.Array) -> pa.Array:
        folders = pc.extract_regex(path, _FOLDER).field("name") if len(path) else path
        wrong = pc.or_kleene(folders.is_null(), pc.match_substring_regex(folders, _NO_PERSON))
        _refuse_rows(
            table, path, pc.fill_null(wrong, True), "a person's folder as the last of its path", "; give --per COLUMN"
        )
        return folders

    def _take(self, kept: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """Reads the tables again, and gives the rows that are kept."""
        start = 0
        for table in self._tables:
            for batch in table.read():
                mask = kept[start : start + len(batch)]
                start += len(batch)
                if start > len(kept):
                    break
                yield batch.filter(pa.array(mask))
        if start != len(kept):
            raise FileAccessError("the tables changed while they were read; let what writes them end, and try again")


def _find_dimensions(table: Table) -> int:
    def fits(kind: pa.DataType) -> bool:
        return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type) and kind.list_size)

    check_column(table, EMBEDDING, fits, "lists of floats of one length")
    return int(table.schema.field(EMBEDDING).type.list_size)


def _to_bytes(column: pa.Array) -> pa.Array:
    """Texts and whole numbers as bytes, which sort as texts do, and may be names that are not UTF-8."""
    return column.cast(pa.string()).cast(pa.binary())


def _drop_empty(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, b""), pa.scalar(None, pa.binary()), column)


def _has_direction(embeddings: pa.Array) -> NDArray[np.bool_]:
    """Says of each embedding whether it has a length, finite and above 0."""
    numbers = embeddings.flatten().to_numpy(zero_copy_only=False)
    found = np.zeros(len(embeddings), np.bool_)
    lengths = np.linalg.norm(numbers.reshape(-1, embeddings.type.list_size).astype(np.float64), axis=1)
    found[embeddings.is_valid().to_numpy(zero_copy_only=False)] = np.isfinite(lengths) & (lengths > 0)
    return found


def _refuse_rows(table: Table, path: pa.Array, wrong: pa.Array, expected: str, remedy: str = "") -> None:
    """Refuses a table where a row with the status ok lacks what it must have; the error names the first.

    Raises:
        FileFormatError: A row is wrong.
    """
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        name = path[row].as_py() or b""
        found = format_path(name.decode("utf-8", "surrogateescape"))
        raise FileFormatError(
            f"{table.name}: expected every row with status ok to have {expected}, {found or 'one'} has none{remedy}"
        )
