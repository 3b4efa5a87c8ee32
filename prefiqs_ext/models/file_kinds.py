"""Recognise files that are not what the user takes them for, and say what to do.

For example, a failed download often leaves an HTML page under the name of the network. The first bytes of a file tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import IO

from prefiqs_ext.exceptions import FileFormatError

_HEAD = 512  # bytes to look at
_ARCHIVE = "an archive", "unpack it and name the file inside"
_ELSEWHERE = "export the network to ONNX where it runs"

# For each kind: a pattern that the file begins with, what the file is, and what the user can do.
_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), what, remedy)
    for pattern, what, remedy in (
        (rb"\Z", "empty", "get it again"),
        (rb"version https://git-lfs", "a Git LFS pointer, which stands for the file", "get the file by `git lfs pull`"),
        (
            rb"\s*<(!doctype html|html|head)",
            "an HTML page, as a failed download leaves",
            "open its address in a browser",
        ),
        (rb"(\xef\xbb\xbf)?\s*<\?xml", "XML text", _ELSEWHERE),
        (rb"\s*\{\s*\"", "JSON text, as a failed download leaves", "get the file again"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|.{257}ustar", *_ARCHIVE),
        (rb"\x89HDF", "an HDF5 file, as Keras writes", _ELSEWHERE),
        (rb".{4}TFL3", "a TensorFlow Lite network", _ELSEWHERE),
        (rb"\x93NUMPY", "an array of NumPy, not a network", "name the network's file"),
    )
)
# Files that can be loaded, but only under a name with the right suffix.
_PYTORCH, _SAFETENSORS, _ONNX = (
    rb"PK\x03\x04|\x80.\x8a\x0al\xfc\x9cF\xf9",
    rb".{6}\0\0\{",
    rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]",
)
_READ = (("PyTorch", _PYTORCH, ".pth"), ("safetensors", _SAFETENSORS, ".safetensors"), ("ONNX", _ONNX, ".onnx"))


def refuse_other_kinds(file: IO[bytes], expected: str) -> None:
    """Refuse a file if its first bytes show that it is of another kind than expected.

    Args:
        file: The open file.
        expected: "PyTorch", "safetensors", "ONNX" or "dlib".

    Raises:
        FileFormatError: The file is of another known kind. The text says which and what to do; it lacks the path.
    """
    file.seek(0)
    head = file.read(_HEAD)
    for pattern, what, remedy in _KINDS:
        if pattern.match(head):
            raise FileFormatError(f"expected {_add_article(expected)} file, this one is {what}: {remedy}")
    for kind, begins, suffix in _READ:
        if kind != expected and re.match(begins, head, re.DOTALL):
            got = f"{_add_article(kind)} file: give it a name in {suffix}"
            raise FileFormatError(f"expected {_add_article(expected)} file, this one is {got}")


def _add_article(kind: str) -> str:
    return f"{'an' if kind == 'ONNX' else 'a'} {kind}"


def is_zip(file: IO[bytes]) -> bool:
    """Return whether a file begins like a zip archive, which is what torch.load looks at too."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def refuse_other_archives(names: Sequence[str]) -> None:
    """Refuse a zip archive that torch.save did not write.

    Args:
        names: The names of the files in the archive.

    Raises:
        FileFormatError: The archive is of TorchScript, of torch.export or of another program.
    """
    ends = {name.rpartition("/")[2] for name in names}
    remedy = "load it where you trust it, and torch.save its state_dict()"
    if "constants.pkl" in ends:
        raise FileFormatError(f"expected a file of torch.save, this one is of TorchScript: {remedy}")
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        raise FileFormatError(f"expected a file of torch.save, this one is of torch.export: {remedy}")
    if "data.pkl" not in ends:
        what, remedy = _ARCHIVE
        raise FileFormatError(f"expected a file of torch.save, this one is {what}: {remedy}")
