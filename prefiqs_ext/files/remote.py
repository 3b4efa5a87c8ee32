"""Addresses of object stores and servers, such as ``s3://bucket/photos``: what fsspec knows, read as files are.

Credentials and their places are fsspec's business: environment variables, configuration files, roles of a machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, cast

from prefiqs_ext.exceptions import InputError, MissingPackageError, PrefiqsError
from prefiqs_ext.utils.os_errors import explain_read_errors
from prefiqs_ext.utils.regular_file import open_regular
from prefiqs_ext.utils.suffixes import is_address
from prefiqs_ext.utils.text import format_path, format_untrusted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_EXTRAS = {"s3": "s3", "s3a": "s3"}
_WILDCARDS = frozenset("*?[")


def open_input(path: str, remedy: str) -> IO[bytes]:
    """Opens a file for its bytes, wherever it lies. It can be sought.

    Args:
        path: A file of this machine, or an address.
        remedy: What the user can do where this is no file: "name an image file".

    Raises:
        MissingFileError: There is no such file.
        FileAccessError: It cannot be opened.
        MissingPackageError: What reads such addresses is not installed.
    """
    if not is_address(path):
        return open_regular(path, remedy)
    with explain_remote_errors(path):
        file_system, name = find_file_system(path)
        return cast(IO[bytes], file_system.open(name, "rb"))


def find_file_system(address: str) -> tuple[AbstractFileSystem, str]:
    """Finds what reads an address, and what it calls the place.

    Raises:
        InputError: No program of this name is known to fsspec.
        MissingPackageError: It is not installed.
    """
    from fsspec.core import url_to_fs

    protocol = address.split("://", 1)[0].rpartition("::")[2]
    try:
        file_system, name = url_to_fs(address)
    except ImportError as error:
        extra = _EXTRAS.get(protocol.lower())
        remedy = f"pip install 'prefiqs_ext[{extra}]'" if extra else format_untrusted(error, 200)
        raise MissingPackageError(f"cannot read {format_path(address)}: {remedy}") from error
    except ValueError as error:
        raise InputError(f"cannot read {format_path(address)}: {format_untrusted(error, 200)}") from error
    return file_system, str(name)


def list_remote_folder(folder: str) -> list[tuple[str, bool]]:
    """Lists the folder at an address: the name of each entry, and whether it is a folder.

    Raises:
        OSError: It cannot be listed.
    """
    file_system, place = find_file_system(folder)
    with _convert_errors():
        listed = file_system.ls(place, detail=True)
    names = ((str(each["name"]).rstrip("/").rpartition("/")[2], each["type"] == "directory") for each in listed)
    own = place.rstrip("/").rpartition("/")[2]
    # A store without folders lists an empty object that stands for the folder.
    return [(name, is_folder) for name, is_folder in names if name and not (name == own and len(listed) == 1)]


def expand_address(address: str) -> list[tuple[str, bool]]:
    """Expands wildcards in an address, as a shell does in paths of this machine.

    Returns:
        The addresses it means, sorted, and whether each is a folder; the address alone if it has no wildcard, or
        something has this very name.

    Raises:
        InputError: Nothing matches.
    """
    with explain_remote_errors(address):
        file_system, name = find_file_system(address)
        if not _WILDCARDS & set(address) or file_system.exists(name):
            return [(address, bool(file_system.isdir(name)))]
        matches = file_system.glob(name, detail=True)  # one listing for all: a request for each would take minutes
        found = sorted(
            (str(file_system.unstrip_protocol(place)), each["type"] == "directory") for place, each in matches.items()
        )
    if not found:
        raise InputError(f"expected images, nothing matches {format_path(address)}")
    return found


def identify_folder(folder: str) -> Hashable:
    """Gives what a folder is known by, by whatever way it is reached.

    Raises:
        OSError: It is not there.
    """
    if is_address(folder):
        return folder.rstrip("/")
    status = os.stat(folder)
    return status.st_dev, status.st_ino


@contextmanager
def explain_remote_errors(address: str) -> Iterator[None]:
    """Turns what a store raises into one line that names the address.

    Raises:
        MissingFileError: There is nothing at the address.
        FileAccessError: It cannot be reached or read.
    """
    with explain_read_errors(format_path(address), remedy="check the address and your credentials"), _convert_errors():
        yield


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Turns errors of clients, which have classes of their own, into an OSError."""
    try:
        yield
    except (OSError, PrefiqsError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, format_untrusted(error, 200) or type(error).__name__) from error
