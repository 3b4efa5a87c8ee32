"""Build-backend plug-in: torch is a build requirement only where the environment being installed into has none.

A user who has torch must never see a second one fetched (gigabytes, and possibly another CUDA version); a user who has
none still gets a working build. It adds nothing to the project's metadata.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("find_torch.py")


def dynamic_metadata(settings: dict[str, Any], project: dict[str, Any]) -> dict[str, Any]:
    return {}


def get_requires_for_dynamic_metadata(settings: dict[str, Any]) -> list[str]:
    probe = subprocess.run([sys.executable, "-E", str(PROBE)], capture_output=True, check=False)
    return [] if probe.returncode == 0 else ["torch>=2.10"]
