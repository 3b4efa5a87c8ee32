"""An image of a run: where it was found, and what travels to whatever decodes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.text import describe_error

if TYPE_CHECKING:
    import pyarrow as pa


HASH_BYTES = 16
"""Of the hash of an image's content, which is BLAKE2b."""


class EncodedImage(NamedTuple):
    """An image on its way to whatever decodes it."""

    path: str
    """What its rows call it: its file, ARCHIVE/MEMBER or FILE.parquet/ROW."""
    data: bytes | None = None
    """The content of an image file; None if it is in the file at `path`."""
    problem: str = ""
    """What is wrong, in one line, where there is no image."""


class CarriedRow(NamedTuple):
    """The columns of an input that go into the output as they are."""

    batch: pa.RecordBatch
    """Some rows of the input."""
    row: int
    """Which of these."""


class InputImage(NamedTuple):
    """An image that was found. It must be read before the next one is asked for, or not at all."""

    path: str
    """As :class:`EncodedImage` has it."""
    read: Callable[[], bytes] | None = None
    """Reads its content out of a container; raises FileFormatError where it is damaged."""
    read_carried: Callable[[], CarriedRow] | None = None
    """Reads the columns beside it."""
    problem: str = ""
    """What is wrong, in one line, where there is no image."""

    def encode(self) -> EncodedImage:
        """Reads the image out of its container; one in a file of its own is left to whatever decodes it."""
        if self.read is None:
            return EncodedImage(self.path, problem=self.problem)
        try:
            return EncodedImage(self.path, self.read())
        except FileFormatError as error:
            return EncodedImage(self.path, problem=describe_error(error))

    def carry(self) -> CarriedRow | None:
        """Reads the columns beside it; None if there are none, or they are damaged."""
        if self.read_carried is None:
            return None
        try:
            return self.read_carried()
        except FileFormatError:
            return None
