"""Print where torch lies, as one JSON line, without importing it (an import costs seconds and may need a GPU driver).

CMake runs this twice: with ``python -E``, which ignores the PYTHONPATH that pip's isolated build sets and so sees the
packages of the environment being installed into, and, where that finds nothing, plainly, which sees the build's own.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path


def find() -> dict[str, str] | None:
    """Folder, version and CUDA version of the torch this interpreter would import; None where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    return {"root": str(root), "version": str(version["__version__"]), "cuda": str(version.get("cuda") or "")}


if __name__ == "__main__":
    found = find()
    if found is None:
        sys.exit("no torch in this interpreter's path")
    print(json.dumps(found))
