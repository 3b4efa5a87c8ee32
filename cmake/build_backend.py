"""The build backend: scikit-build-core's, with torch a build requirement where a wheel is made beside none.

A user who has torch must never see a second one fetched (gigabytes, and possibly another CUDA version); a user who has
none still gets a working build. A source distribution compiles nothing and so never asks for torch, and neither does a
wheel of libraries that are built already (PREFIQS_LIBRARIES).
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403  the hooks that are not wrapped here

PROBE = Path(__file__).with_name("find_torch.py")


def missing_torch() -> list[str]:
    """The requirement, unless the environment being installed into meets it; -E hides the build's own overlay."""
    if os.environ.get("PREFIQS_LIBRARIES"):
        return []
    probe = subprocess.run([sys.executable, "-E", str(PROBE)], capture_output=True, check=False)
    return [] if probe.returncode == 0 else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build.get_requires_for_build_wheel(config_settings), *missing_torch()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build.get_requires_for_build_editable(config_settings), *missing_torch()]
