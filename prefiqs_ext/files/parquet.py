"""The images in a Parquet file, one row after another, read a few rows at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from prefiqs_ext.exceptions import FileAccessError, FileFormatError, InputError
from prefiqs_ext.files.image import CarriedRow, InputImage
from prefiqs_ext.files.remote import explain_remote_errors, open_input
from prefiqs_ext.utils.arrow_errors import explain_damage
from prefiqs_ext.utils.budget import FREE_BYTES, MAX_IMAGE_BYTES, MAX_INFLATION
from prefiqs_ext.utils.optional_packages import require_packages
from prefiqs_ext.utils.text import format_path, format_untrusted

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS = 16  # that are in memory at a time: a row may have a whole photo
_BUFFER = 1 << 20
_DAMAGED = "expected a Parquet file, it is damaged"


def read_carried_schema(path: str, image_column: str) -> pa.Schema | None:
    """Reads which columns a Parquet file has beside its images.

    Args:
        path: The file, of this machine or an address.
        image_column: The column that has the images.

    Returns:
        Names and types; None if there are no other columns.

    Raises:
        InputError: It has no such column, or one of another type.
        FileFormatError: It is no Parquet file.
        FileAccessError: It cannot be read.
    """
    with _open_parquet(path) as file:
        _check_image_column(path, file.schema_arrow, image_column)
        return _drop_column(file.schema_arrow, image_column)


def list_rows(path: str, image_column: str, carried: pa.Schema | None) -> Iterator[InputImage]:
    """Lists the images in a Parquet file.

    Args:
        path: The file, of this machine or an address.
        image_column: The column that has the images.
        carried: The other columns that the file must have, which go with each image. None: they are ignored.

    Yields:
        One image per row, called ``path/ROW`` with ROW from 0. What is wrong with the file is one more, which has the
        file's path and says so.

    Raises:
        FileAccessError: It was opened, and then could not be read on.
    """
    row = 0
    try:
        with _open_parquet(path) as file:
            _check_image_column(path, file.schema_arrow, image_column)
            if carried is not None and _drop_column(file.schema_arrow, image_column) != carried:
                raise FileFormatError(
                    "expected the same columns as in the first Parquet file; give it a run of its own"
                )
            for group in range(file.num_row_groups):
                rows = _RowGroup(file, group, image_column, carried)
                for place in range(file.metadata.row_group(group).num_rows):
                    carry = None if carried is None else partial(rows.carry, place)
                    yield InputImage(f"{path}/{row}", partial(rows.read, place), carry)
                    row += 1
    except (FileFormatError, InputError) as error:
        yield InputImage(path, problem=f"{'its end is lost: ' if row else ''}{error}")
    except FileAccessError as error:
        if row:
            raise
        yield InputImage(path, problem=str(error))


class _RowGroup:
    """The rows of one row group. They are read from the first one that is asked for; those before it are not kept."""

    def __init__(self, file: pq.ParquetFile, group: int, image_column: str, carried: pa.Schema | None) -> None:
        self._file = file
        self._group = group
        self._column = image_column
        self._carried = carried
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._begin = self._end = 0

    def read(self, row: int) -> bytes:
        """Reads the image of a row."""
        self._go_to(row)
        cell = self._images[row - self._begin]
        if cell.is_valid and hasattr(cell, "keys"):
            cell = cell["bytes"]
        if not cell.is_valid:
            raise FileFormatError("expected an image, the cell is empty")
        data: bytes = cell.as_py()
        if len(data) > MAX_IMAGE_BYTES:
            raise FileFormatError(f"expected at most {MAX_IMAGE_BYTES / 1e6:.0f} MB, got {len(data) / 1e6:.0f} MB")
        return data

    def carry(self, row: int) -> CarriedRow:
        """Gives the other columns of a row."""
        self._go_to(row)
        return CarriedRow(self._others, row - self._begin)

    def _go_to(self, row: int) -> None:
        with explain_damage(_DAMAGED, or_memory=True):
            if self._batches is None:
                columns = [self._column] if self._carried is None else None
                self._batches = self._file.iter_batches(_ROWS, row_groups=[self._group], columns=columns)
            while row >= self._end:
                batch = next(self._batches, None)
                if batch is None:
                    raise FileFormatError(f"expected more than {self._end} rows in row group {self._group}")
                self._images = batch.column(self._column)
                self._others = batch.drop_columns([self._column])
                self._begin, self._end = self._end, self._end + batch.num_rows


@contextmanager
def _open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    require_packages("parquet", "pyarrow")
    import pyarrow.parquet as pq

    with (
        open_input(path, "name a Parquet file") as stream,
        explain_remote_errors(path),
        explain_damage(_DAMAGED, or_memory=True),
        # Without pre-buffering, a row group is read in pieces: some writers make one of the whole file.
        pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER) as file,
    ):
        # The sizes of single columns are not looked at: pyarrow ends the process where they are damaged.
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
        if size > MAX_INFLATION * stream.seek(0, io.SEEK_END) + FREE_BYTES:
            raise FileFormatError(f"expected columns of at most {MAX_INFLATION} times the file's size")
        yield file


def _check_image_column(path: str, schema: pa.Schema, image_column: str) -> None:
    import pyarrow as pa

    name = format_path(path)
    found = schema.get_all_field_indices(image_column)
    if len(found) != 1:
        there = format_untrusted(", ".join(schema.names), 200)
        expected = f"expected one column {image_column!r} with images"
        raise InputError(f"{name}: {expected}, there are: {there}; name one with --image-column")
    kind = schema.field(found[0]).type
    content = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise InputError(
            f"{name}: expected encoded images (binary, or a struct with `bytes`) in column {image_column!r}, got "
            f"{format_untrusted(kind)}"
        )


def _drop_column(schema: pa.Schema, name: str) -> pa.Schema | None:
    others = schema.remove(schema.get_field_index(name)).remove_metadata()
    return others if len(others) else None
