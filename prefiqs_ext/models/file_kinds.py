"""What a file is, where it is not what it was taken for: told by its first bytes, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prefiqs_ext.exceptions import FileFormatError

_HEAD = 512
_ARCHIVE = "an archive", "unpack it and name the file inside"
_ELSEWHERE = "export the network to ONNX where it runs"

# Of a file's first bytes, at their beginning; what it is; what to do.
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
# Those that are read where their names say so.
_PYTORCH, _SAFETENSORS, _ONNX = (
    rb"PK\x03\x04|\x80.\x8a\x0al\xfc\x9cF\xf9",
    rb".{6}\0\0\{",
    rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]",
)
_READ = (("PyTorch", _PYTORCH, ".pth"), ("safetensors", _SAFETENSORS, ".safetensors"), ("ONNX", _ONNX, ".onnx"))


def refuse_other_kinds(path: Path, expected: str) -> None:
    """Refuses a file that is known to be something else than a "PyTorch", "safetensors", "ONNX" or "dlib" file.

    Raises:
        FileFormatError: what it is and what to do, without the path.
    """
    with path.open("rb") as file:
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


def is_zip(path: Path) -> bool:
    """Whether it begins as a zip archive, which is how torch.load tells its two formats apart."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def refuse_other_archives(names: Sequence[str]) -> None:
    """Raises FileFormatError for a zip archive of these files, if torch.save did not write it."""
    ends = {name.rpartition("/")[2] for name in names}
    remedy = "load it where you trust it, and torch.save its state_dict()"
    if "constants.pkl" in ends:
        raise FileFormatError(f"expected a file of torch.save, this one is of TorchScript: {remedy}")
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        raise FileFormatError(f"expected a file of torch.save, this one is of torch.export: {remedy}")
    if "data.pkl" not in ends:
        what, remedy = _ARCHIVE
        raise FileFormatError(f"expected a file of torch.save, this one is {what}: {remedy}")
