"""From image files to a table: which files are meant, reading and scoring them, results that outlive a crash.

The names are loaded when they are first used, so that finding paths needs no torch; see ``__init__.pyi`` for where
they are.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
