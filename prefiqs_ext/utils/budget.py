"""What a file may cost. Every reader of files takes its bounds from here, and refuses a file that goes beyond.

A file of some kilobytes can ask for gigabytes or for hours: by views of one number, by one picture in a thousand
passes, by padding without end. So a reader bounds what it counts before it does the work: bytes, parts, pixels,
multiplications. No clock is read: a file is accepted or refused on every machine alike. Together the bounds keep the
memory that a reader takes below 8 times the file plus 1 GB, and its time below some seconds beyond that of reading.
"""

from __future__ import annotations

from prefiqs_ext.exceptions import FileFormatError

MAX_CHECKPOINT_BYTES = 4 << 30
"""Of a PyTorch or safetensors file. (A training checkpoint of an IResNet-200 with its optimiser has 1.5 GB.)"""
MAX_ONNX_BYTES = 1 << 30
"""Of an ONNX file; more than twice an IResNet-200 in float32."""
MAX_DLIB_BYTES = 256 << 20
"""Of a file of dlib's network, which has 22 MB."""
MAX_IMAGE_BYTES = 1 << 30
"""Of an image file; 50 megapixels of 16-bit RGBA have 400 MB."""
MAX_BIN_BYTES = 4 << 30
"""Of a .bin of images; ten times the largest published one."""

MAX_INFLATION = 100
"""Times the bytes of an archive, or of a column of a Parquet file, that what is in it may have. (Images do not shrink.)
"""

MAX_PARTS = 500_000
"""Opcodes of a pickle, fields of an ONNX file, or segments of a JPEG. (A checkpoint of an IResNet-200 with the state of
its optimiser has 120,000.)"""
MAX_NAMES = 1_000
"""Different classes and functions that a pickle names."""
MAX_NAME_LENGTH = 1000
"""Characters of the name of a tensor or a storage."""
MAX_BLOCKS = 300
"""Blocks of one kind in a checkpoint; an IResNet-200 has 43 in its longest stage."""
MAX_NODES = 20_000
"""Nodes of an ONNX graph; an IResNet-200 has 700."""
MAX_NESTING = 8
"""Dictionaries around a state dict, and messages in one another in an ONNX file beyond those that it must have."""
BYTES_PER_BYTE = 3
"""Bytes of tensors that a reader makes for one byte of the file: a copy, another type, another layout."""
FREE_BYTES = 64 << 20
"""Bytes of tensors that any file may ask for, however small."""

MAX_PIXELS = 50_000_000
"""Of a picture, checked before it is decoded."""
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
"""Pixels of a JPEG times its scans, the passes in which it is stored; cameras and libjpeg write ten scans or fewer."""

MAX_MULTIPLICATIONS = 100_000_000_000
"""Of an ONNX network on one image; an IResNet-200 has 24e9, a ViT-L/16 at 224 x 224 pixels 62e9."""
MAX_ACTIVATIONS = 32_000_000
"""Numbers that an ONNX network keeps at a time for one image; an IResNet-200 keeps 3e6."""
MAX_SIDE = 1024
"""Pixels, of the images that a checkpoint's network takes."""


class Budget:
    """What is left of what one file may cost.

    Args:
        size: How many bytes the file has.
    """

    def __init__(self, size: int) -> None:
        self._most_bytes = self._bytes = BYTES_PER_BYTE * size + FREE_BYTES
        self._parts = MAX_PARTS

    def charge_bytes(self, count: int) -> None:
        """Takes bytes of a tensor that is about to be made.

        Raises:
            FileFormatError: They are more than are left.
        """
        self._bytes -= count
        if self._bytes < 0:
            raise FileFormatError(
                f"expected tensors of at most {self._most_bytes} bytes together, the file declares more"
            )

    def charge_parts(self, count: int = 1) -> None:
        """Takes parts of the file, such as opcodes of a pickle, that are about to be read.

        Raises:
            FileFormatError: They are more than are left.
        """
        self._parts -= count
        if self._parts < 0:
            raise FileFormatError(f"expected at most {MAX_PARTS} parts, the file has more")
