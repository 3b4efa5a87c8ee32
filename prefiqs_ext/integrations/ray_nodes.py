"""What holds on one node of a cluster: where its processes stand, and which of them may fetch weights."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefiqs_ext.exceptions import InputError


@contextmanager
def hold_node() -> Iterator[None]:
    """Lets one process of a node and a user at a time into the body.

    Whoever comes second finds the weights that the first one has fetched, and the two do not need the memory for making
    a Scorer at the same time.
    """
    lock = Path(tempfile.gettempdir(), f"prefiqs-{os.getuid()}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def enter_folder(folder: str) -> None:
    """Makes the folder in which the command was given this process's own, so that relative paths mean the same.

    Raises:
        InputError: This node does not have it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"this node has no folder {folder!r} ({error.strerror}): give the command in a folder that all nodes share"
        ) from error
