"""Writes the rows that are kept: as the tables of `prefiqs score` are, or as a list of paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.selection.groups import Group
from prefiqs_ext.selection.tables import is_binary, is_text
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.text import format_csv_line, format_csv_path, format_path, quote_formula


class Output(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object:
        """Writes them."""


_GROUPS = 4096  # whose templates wait to be written

WriteRows = Callable[[Output, pa.Schema, Iterable[pa.RecordBatch]], None]
"""Writes the rows of batches that have a schema."""


def choose_writer(output: Path | None) -> WriteRows:
    """Chooses what writes a file by its suffix; csv for standard output (None).

    Raises:
        InputError: The suffix is none of .csv, .parquet and .txt.
    """
    writers = {".csv": write_csv, ".parquet": write_parquet, ".txt": write_paths}
    suffix = ".csv" if output is None else get_suffix(output)
    if suffix not in writers:
        raise InputError(f"expected an output that ends in .csv, .parquet or .txt, got {format_path(str(output))}")
    return writers[suffix]


def write_csv(file: Output, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes csv as `prefiqs score` does. Columns of bytes and of lists, such as embeddings, are left out.

    Texts that a spreadsheet would take for a formula are written as :mod:`prefiqs_ext.utils.text` says.
    """
    names = [field.name for field in schema if _fits_csv(field.type)]
    file.write(_encode(format_csv_line(map(quote_formula, names))))
    for batch in batches:
        columns = [_format_column(name, batch[name]) for name in names]
        file.write(b"".join(_encode(format_csv_line(row)) for row in zip(*columns, strict=True)))


def write_parquet(file: Output, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes Parquet with all columns.

    Raises:
        InputError: A text, which came from a CSV file, is not UTF-8.
    """
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in batches:
            _write_valid(writer, batch)


def write_paths(file: Output, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes each path once, one per line, as `prefiqs score @FILE` reads them.

    Raises:
        InputError: A path has a line end, which such a list cannot hold.
    """
    written: set[bytes] = set()
    for batch in batches:
        for path in dict.fromkeys(_list_bytes(batch["path"])):
            if path in written:
                continue
            if b"\n" in path or b"\r" in path:
                name = format_path(path.decode("utf-8", "surrogateescape"))
                raise InputError(f"expected paths without line ends, got {name}; write a .csv or .parquet file")
            written.add(path)
            file.write(path + b"\n")


class TemplateWriter:
    """Writes templates to Parquet: group (text), faces (how many it is made of) and embedding. A context manager.

    Args:
        file: Where the bytes go.
        dimensions: The length of an embedding.
    """

    def __init__(self, file: Output, dimensions: int) -> None:
        kinds = (("group", pa.string()), ("faces", pa.int64()), ("embedding", pa.list_(pa.float32(), dimensions)))
        self._schema = pa.schema(kinds)
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._waiting: list[Group] = []

    def add(self, group: Group) -> None:
        """Adds the template of a group.

        Raises:
            InputError: The name of the group, which came from a CSV file, is not UTF-8.
        """
        self._waiting.append(group)
        if len(self._waiting) == _GROUPS:
            self._flush()

    def __enter__(self) -> TemplateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writer:
            if kind is None:
                self._flush()

    def _flush(self) -> None:
        groups, self._waiting = self._waiting, []
        numbers = np.asarray([group.template for group in groups], np.float32).ravel()
        columns = [
            pa.array([group.name for group in groups], pa.binary()).cast(pa.string(), safe=False),
            pa.array([len(group.places) for group in groups], pa.int64()),
            pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=self._schema.field("embedding").type),
        ]
        _write_valid(self._writer, pa.record_batch(columns, schema=self._schema))


def _write_valid(writer: pyarrow.parquet.ParquetWriter, batch: pa.RecordBatch) -> None:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(
            "expected texts in UTF-8, as Parquet has them, got a name that is not; write a .csv file"
        ) from error
    writer.write_batch(batch)


def _fits_csv(kind: pa.DataType) -> bool:
    return not (is_binary(kind) or pa.types.is_nested(kind))


def _format_column(name: str, column: pa.Array) -> Iterator[object]:
    if is_text(column.type):
        texts = (None if text is None else text.decode("utf-8", "surrogateescape") for text in _list_bytes(column))
        return (format_csv_path(text) for text in texts) if name == "path" else map(quote_formula, texts)
    if pa.types.is_float32(column.type):  # the fewest digits that give the same float32 back
        return (None if number is None else str(np.float32(number)) for number in column.to_pylist())
    return map(quote_formula, column.to_pylist())


def _list_bytes(column: pa.Array) -> list[bytes]:
    texts: list[bytes] = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    return texts


def _encode(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")
