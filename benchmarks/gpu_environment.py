"""Builds the native libraries for the GPU machine, and puts them in place there. Needs only the standard library.

`python -m benchmarks.gpu_environment pack DIR` is called by pack_gpu.sh: it builds here and fills DIR/native.
`python -m benchmarks.gpu_environment install DIR` is called by on_gpu.sh: it installs the wheels that are missing there
into build/gpu/site, and copies the libraries into prefiqs_ext. It builds only what the pack lacks. No package index is
asked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

FOLDER = Path("build") / "gpu"
SITE = FOLDER / "site"
_PACKAGE = Path("prefiqs_ext")
_DIGEST = "sources.sha256"
_CUDA_BIN = "/usr/local/cuda/bin"
_ARCHITECTURES = "90a-real;90-virtual"  # the card is an H200
_PYTHON = "python3.12"  # of that machine
ENGINE = ("csrc/**/*", "cmake/*.cmake", "CMakeLists.txt")
"""What the libraries are built from."""


def digest_sources(*patterns: str) -> str:
    """Compute the SHA-256 of all files of some patterns."""
    files = sorted(file for pattern in patterns for file in Path().glob(pattern) if file.is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def pack(folder: Path) -> None:
    """Build here, and put a wheel with the libraries into `folder`/native: the other machine's, if its Python is here.

    Without that Python it is the wheel of this one, whose libraries serve there too.
    """
    native = folder / "native"
    native.mkdir(parents=True)
    work, digest = Path("build") / "gpu_pack", digest_sources(*ENGINE)
    wheel = next(work.glob(f"{digest}/*.whl"), None)  # nvcc takes minutes: once for the same sources
    if wheel is None:
        wheel = build_wheel(work / digest, work / "objects", isolated=True)
    wheels = runpy.run_path(str(Path("cmake/wheels.py").absolute()))
    if wheels["runs"](_PYTHON):
        wheels["make_wheel"](_PYTHON, extract(wheel, work / "libraries").absolute(), native)
    else:
        print(f"no {_PYTHON} here: the last library is built on the other machine")
        shutil.copy(wheel, native)
    (native / _DIGEST).write_text(digest)


def build_wheel(output: Path, objects: Path, *, isolated: bool, libraries: Path | None = None) -> Path:
    """Build a wheel of this Python, around libraries that exist or with new ones."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", f"--wheel-dir={output}"]
    command += [f"--config-settings=build-dir={objects}"]
    command += [f"--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES={_ARCHITECTURES}"]
    command += [] if isolated else ["--no-index", "--no-build-isolation"]
    built = {"PREFIQS_LIBRARIES": "" if libraries is None else str(libraries.absolute())}
    subprocess.run([*command, "."], check=True, env=build_variables(os.environ) | built)
    (wheel,) = output.glob("*.whl")
    return wheel


def extract(wheel: Path, folder: Path) -> Path:
    """Extract the libraries of a wheel into an empty folder; returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("prefiqs_ext/") and name.endswith(".so"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def install(folder: Path) -> None:
    """Install what is missing here from a pack, and build what the pack lacks or what does not load."""
    lacking = find_missing(folder / "wheels")
    print("installing", *(wheel.name for wheel in lacking), flush=True)
    if lacking:
        options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", f"--target={SITE}"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, lacking)], check=True)
    libraries = find_libraries(folder / "native")
    if libraries is not None:
        copy_libraries(libraries)
        if _loads():
            return
        libraries = None
    print("building", flush=True)
    wheel = build_wheel(FOLDER / "wheel", FOLDER / "objects", isolated=False, libraries=libraries)
    copy_libraries(extract(wheel, FOLDER / "libraries"))


def find_libraries(native: Path) -> Path | None:
    """Extract the libraries of a pack, and build this Python's own if it is missing; None if they are of other sources.

    Args:
        native: The folder with the pack's wheel.
    """
    digest, wheels = native / _DIGEST, sorted(native.glob("*.whl"))
    if not wheels or digest.read_text() != digest_sources(*ENGINE):
        print(f"{native} has no libraries of these sources")
        return None
    found = extract(wheels[0], FOLDER / "libraries")
    if any(file.name.endswith(sysconfig.get_config_var("EXT_SUFFIX")) for file in found.iterdir()):
        return found
    wheel = build_wheel(FOLDER / "wheel", FOLDER / "objects", isolated=False, libraries=found)
    return extract(wheel, FOLDER / "own")


def copy_libraries(folder: Path) -> None:
    """Copy libraries into the package, where they differ; one that is loaded is replaced, never overwritten."""
    for file in folder.glob("*.so"):
        target = _PACKAGE / file.name
        if not target.exists() or target.read_bytes() != file.read_bytes():
            shutil.copyfile(file, target.with_suffix(".part"))
            target.with_suffix(".part").replace(target)
        print("in place:", target, flush=True)


def _loads() -> bool:
    """Tell whether the libraries can be imported; a process of its own, because one that cannot may crash."""
    code = "import torch, prefiqs_ext.ops as ops; raise SystemExit(torch.version.cuda and ops.cuda_missing)"
    return subprocess.run([sys.executable, "-c", code], check=False, env=build_variables(os.environ)).returncode == 0


def find_missing(wheels: Path) -> list[Path]:
    """Find the wheels of a folder whose distribution this Python lacks."""
    return [wheel for wheel in sorted(wheels.glob("*.whl")) if not _is_installed(wheel.name.split("-")[0])]


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(re.sub(r"[-_.]+", "-", name))
    except metadata.PackageNotFoundError:
        return False
    return True


def build_variables(base: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Build the environment variables for the build and for what runs later."""
    paths = [str((SITE / "bin").absolute()), _CUDA_BIN, base.get("PATH", os.defpath)]
    packages = [str(SITE.absolute()), *filter(None, [base.get("PYTHONPATH")])]
    given = {"PATH": os.pathsep.join(paths), "PYTHONPATH": os.pathsep.join(packages)}
    return {**base, **given, "PREFIQS_CUDA": "ON", "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Fill a pack, or install from one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "install"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"pack": pack, "install": install}[arguments.what](arguments.folder)


if __name__ == "__main__":
    main()
