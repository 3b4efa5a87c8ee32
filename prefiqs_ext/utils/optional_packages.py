"""Optional packages: a check that comes before the work that needs them."""

from __future__ import annotations

from importlib.util import find_spec

from prefiqs_ext.exceptions import MissingPackageError


def require_packages(extra: str, *names: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        extra: The group of optional dependencies of prefiqs_ext that holds them.
        *names: What they are called in an import.

    Raises:
        MissingPackageError: one is not installed; says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingPackageError(f"{name} is missing: pip install 'prefiqs_ext[{extra}]'")
