"""Creates a Python environment on the GPU machine, in build/gpu: `python -m benchmarks.gpu_environment --wheels DIR`.

It sees all packages of the Python that runs this. Of the wheels in DIR it installs those that are missing there, then
prefiqs_ext with its CUDA kernels, editable. No package index is asked. This file needs only the standard library.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

FOLDER = Path("build") / "gpu"
PYTHON = FOLDER / "env" / "bin" / "python"
_CUDA_BIN = "/usr/local/cuda/bin"


def create_environment(wheels: Path | None) -> None:
    """Create the environment and install the missing wheels and prefiqs_ext into it."""
    # Built by hand where ensurepip is missing; the outer packages hold pip, and may be a virtual environment's own.
    venv.create(FOLDER / "env", with_pip=False, symlinks=True)
    site = next((FOLDER / "env" / "lib").glob("python*/site-packages"))
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "outer.pth").write_text("\n".join(outer) + "\n")
    install = [str(PYTHON), "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    lacking = find_missing(wheels)
    print("installing", *(wheel.name for wheel in lacking), flush=True)
    if lacking:
        subprocess.run([*install, *map(str, lacking)], check=True)
    objects = f"--config-settings=build-dir={FOLDER / 'objects'}"
    subprocess.run([*install, "--verbose", objects, "--editable", "."], check=True, env=build_variables(os.environ))


def find_missing(wheels: Path | None) -> list[Path]:
    """Find the wheels whose distribution this Python lacks."""
    found = sorted(wheels.glob("*.whl")) if wheels else []
    return [wheel for wheel in found if not _is_installed(wheel.name.split("-")[0])]


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(re.sub(r"[-_.]+", "-", name))
    except metadata.PackageNotFoundError:
        return False
    return True


def build_variables(base: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Build the environment variables for the build and for what runs later."""
    paths = [str(PYTHON.parent.absolute()), base.get("PATH", os.defpath)]
    if Path(_CUDA_BIN).is_dir():
        paths.insert(1, _CUDA_BIN)
    return {**base, "PATH": os.pathsep.join(paths), "PREFIQS_CUDA": "ON", "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Create the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="DIR")
    create_environment(parser.parse_args().wheels)


if __name__ == "__main__":
    main()
