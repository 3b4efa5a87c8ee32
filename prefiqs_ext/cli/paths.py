"""Paths that a command reads, checked when its arguments are."""

from __future__ import annotations

import os
from pathlib import Path

import click

from prefiqs_ext.cli.wrong_usage import refuse_usage
from prefiqs_ext.files.paths import refuse_unreadable


class InputPath(click.Path):
    """A path that must be there; an address, an archive or a video is refused with what to do instead."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=True, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            click.UsageError: it is missing, or nothing that the package reads.
        """
        with refuse_usage():
            refuse_unreadable(os.fspath(value))
        return Path(os.fsdecode(super().convert(value, param, ctx)))


class ImagesPath(click.Path):
    """A PATH of the commands that score: an image, a folder of images, or @LIST. It stays a str.

    Args:
        containers: Whether it may also be an archive, a Parquet file or an address.
    """

    def __init__(self, *, containers: bool = False) -> None:
        super().__init__()
        self._containers = containers

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path.

        Raises:
            click.UsageError: it is missing, or nothing that the command reads.
        """
        with refuse_usage():
            refuse_unreadable(os.fspath(value), containers=self._containers)
        return os.fspath(value)


INPUT_FOLDER = InputPath(file_okay=False)
INPUT_FILE = InputPath(dir_okay=False)
