"""Paths that a command reads, checked when its arguments are."""

from __future__ import annotations

import os
from pathlib import Path

import click


class InputPath(click.Path):
    """A path that must be there; an address, an archive or a video is refused with what to do instead."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            InputError: it is missing, or nothing that the package reads.
        """
        from prefiqs_ext.files.paths import refuse_unreadable

        refuse_unreadable(os.fspath(value))
        return Path(os.fsdecode(super().convert(value, param, ctx)))


INPUT_FOLDER = InputPath(exists=True, file_okay=False)
