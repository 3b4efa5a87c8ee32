"""What can be said of a model by its name, before it is loaded: whether it is there, and whether it needs a preset."""

from __future__ import annotations

import os

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.weights import BUILT_IN, describe_unknown
from prefiqs_ext.utils.text import format_path


def check_model_file(model: str | os.PathLike[str], *, has_preset: bool, remedy: str = "name its preset") -> None:
    """Checks that a model is built in, or a file that comes with a preset.

    Args:
        model: The built-in name, or the file.
        has_preset: Whether a preset was named. A built-in network needs none.
        remedy: How to name one, for the error.

    Raises:
        InputError: It is neither, or a folder, or a file without a preset.
    """
    if model in BUILT_IN:
        return
    name = os.fspath(model)
    if not os.path.exists(name):
        raise InputError(describe_unknown(name))
    if os.path.isdir(name):
        raise InputError(f"expected a file, got the folder {format_path(name)}")
    if not has_preset:
        raise InputError(
            f"expected a preset: the file {format_path(name)} cannot tell the input its network wants; {remedy}"
        )
