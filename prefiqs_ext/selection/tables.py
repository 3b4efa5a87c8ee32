"""Reads the tables that `prefiqs score` writes, CSV or Parquet, a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from prefiqs_ext.exceptions import FileFormatError, InputError
from prefiqs_ext.files.arrow_table import EMBEDDING
from prefiqs_ext.files.records import COLUMNS
from prefiqs_ext.utils.arrow_errors import explain_damage
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.suffixes import get_suffix
from prefiqs_ext.utils.text import format_path, format_untrusted

_BATCH = 1 << 15  # rows; with embeddings of 512 numbers they take 64 MB
_BLOCK = 1 << 20  # bytes that are read of a file at a time
_CSV_TYPES = {"path": pa.string(), "face": pa.int32(), "status": pa.string(), "reason": pa.string()}
_PARSE = pyarrow.csv.ParseOptions(newlines_in_values=True)


class Table(NamedTuple):
    """A table that was found to be one of `prefiqs score`. Its rows are read by :meth:`read`."""

    path: str
    schema: pa.Schema

    @property
    def name(self) -> str:
        """The path as a person reads it."""
        return format_path(self.path)

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Reads the rows in order.

        Names in a CSV file that are not UTF-8 stay the bytes they are; of a Parquet file they are refused.

        Args:
            columns: The names of the columns to read. None: all of them.

        Raises:
            FileFormatError: The file is damaged.
            FileAccessError: It cannot be read.
        """
        with open_regular(self.path, "name a table") as file, _explain_errors(self.name):
            if get_suffix(self.path) == ".csv":
                convert = pyarrow.csv.ConvertOptions(
                    column_types=dict(zip(self.schema.names, self.schema.types, strict=True)),
                    include_columns=columns,
                    null_values=[""],
                    strings_can_be_null=False,
                    check_utf8=False,
                )
                yield from pyarrow.csv.open_csv(file, parse_options=_PARSE, convert_options=convert)
                return
            reader = pyarrow.parquet.ParquetFile(file, buffer_size=_BLOCK)
            for batch in reader.iter_batches(_BATCH, columns=columns):
                batch.validate(full=True)
                yield batch


def open_tables(paths: Sequence[str]) -> list[Table]:
    """Looks at tables before the work: they are of `prefiqs score`, and all have the same columns.

    Raises:
        InputError: A file is not called .csv or .parquet.
        FileFormatError: A file is no such table or is damaged, or tables differ in their columns.
        FileAccessError: A file cannot be read.
    """
    tables = [Table(path, _read_schema(path)) for path in paths]
    first = tables[0]
    for table in tables:
        _check_schema(table)
        for name in dict.fromkeys([*first.schema.names, *table.schema.names]):
            found, expected = (_describe_type(schema, name) for schema in (table.schema, first.schema))
            if found != expected:
                raise FileFormatError(
                    f"expected tables of the same columns: {format_untrusted(name)} is {expected} in {first.name} and "
                    f"{found} in {table.name}"
                )
        if table.schema.names != first.schema.names:
            raise FileFormatError(f"expected columns in the order of {first.name}, got another in {table.name}")
    return tables


def is_text(kind: pa.DataType) -> bool:
    """Says whether a column has texts, as a dictionary or not."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Says whether a column has bytes, such as hashes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _read_schema(path: str) -> pa.Schema:
    if get_suffix(path) not in (".csv", ".parquet"):
        raise InputError(f"expected a table of `prefiqs score` that ends in .csv or .parquet, got {format_path(path)}")
    with open_regular(path, "name a table") as file, _explain_errors(format_path(path)):
        if get_suffix(path) == ".parquet":
            return pyarrow.parquet.ParquetFile(file).schema_arrow.remove_metadata()
        # The names alone: what Arrow guesses of the types depends on the rows.
        names = pyarrow.csv.open_csv(file, parse_options=_PARSE).schema.names
    numbers = dict.fromkeys(COLUMNS, pa.float32())
    return pa.schema([(name, _CSV_TYPES.get(name) or numbers.get(name) or pa.string()) for name in names])


def _check_schema(table: Table) -> None:
    names = table.schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FileFormatError(f"{table.name}: expected each column once, got {format_untrusted(twice)} twice")
    check_column(table, "path", is_text, "texts")
    check_column(table, "face", pa.types.is_integer, "whole numbers")
    check_column(table, "status", is_text, "texts")
    check_column(table, "score", pa.types.is_floating, "floats")


def check_column(table: Table, name: str, fits: Callable[[pa.DataType], bool], expected: str) -> None:
    """Checks that a table has a column of the right type.

    Args:
        table: The table.
        name: The column.
        fits: Whether a type is right.
        expected: What is right, for the error.

    Raises:
        FileFormatError: It has no such column, and the error names those that there are; or it is of another type.
    """
    if name not in table.schema.names:
        known = format_untrusted(", ".join(table.schema.names), 400)
        hint = "; `prefiqs score --embedding-column` writes it" if name == EMBEDDING else ""
        raise FileFormatError(f"{table.name}: no column {format_untrusted(name)}; there are {known}{hint}")
    if not fits(table.schema.field(name).type):
        found = _describe_type(table.schema, name)
        raise FileFormatError(f"{table.name}: expected {expected} in the column {format_untrusted(name)}, got {found}")


def _describe_type(schema: pa.Schema, name: str) -> str:
    return format_untrusted(schema.field(name).type) if name in schema.names else "missing"


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Turns what a table raises that cannot be read, or is none, into one line that names it."""
    with explain_read_errors(name), explain_damage(f"{name}: damaged, or no such table"):
        yield
