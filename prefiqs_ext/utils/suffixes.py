"""What a path says of a file before it is read: its suffix, and things that are often given in place of an image."""

from __future__ import annotations

import os
import re

from prefiqs_ext.exceptions import FileFormatError, InputError
from prefiqs_ext.utils.text import format_path

PARQUET, ZIP = ".parquet", ".zip"
TARS = {".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz"}
"""Suffixes of tar files, the last three with ``.tar`` before them."""
CONTAINERS = {PARQUET, ZIP, *TARS}
"""Suffixes of files that hold many images."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ARCHIVES = {ZIP, *TARS, ".zst", ".7z", ".rar"}
_VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".mts", ".m2ts"}


def get_suffix(path: str | os.PathLike[str]) -> str:
    """Gives a file's suffix in lower case, with its dot; empty if there is none."""
    return os.path.splitext(os.fspath(path))[1].lower()


def is_container(path: str) -> bool:
    """Whether a path means an archive or a Parquet file, which hold many images."""
    return get_suffix(path) in CONTAINERS


def is_address(path: str) -> bool:
    """Whether this is an address such as ``https://example.org/a.jpg`` or ``s3://bucket/photos``."""
    return _ADDRESS.match(path) is not None


def refuse_url(path: str, expected: str = "a file", remedy: str = "download it first") -> None:
    """Refuses an address such as ``https://example.org/a.jpg``.

    Args:
        path: What was given.
        expected: What was expected instead.
        remedy: What the user can do.

    Raises:
        InputError: It is one.
    """
    if is_address(path):
        raise InputError(f"expected {expected}, got the URL {format_path(path)}: {remedy}")


def refuse_archive_or_video(path: str, expected: str = "an image") -> None:
    """Refuses a file with the suffix of an archive or a video; the error says how to get images out of it.

    Args:
        path: What was given.
        expected: What was expected instead.

    Raises:
        FileFormatError: It is one.
    """
    name = format_path(path)
    if get_suffix(path) in _ARCHIVES:
        raise FileFormatError(f"expected {expected}, got the archive {name}: unpack it first")
    if get_suffix(path) == PARQUET:
        raise FileFormatError(f"expected {expected}, got the table {name}: write its images as files first")
    if get_suffix(path) in _VIDEOS:
        raise FileFormatError(
            f"expected {expected}, got the video {name}: write its frames as images first, "
            f"`mkdir frames && ffmpeg -i {name} -vf fps=2 frames/%06d.png`"
        )
