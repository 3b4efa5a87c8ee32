#!/bin/sh
# Checks and measures the CUDA engine on a machine with a GPU: benchmarks/on_gpu.sh OUTDIR [--budget SECONDS].
# All else is said by benchmarks/on_gpu.py, which needs a Python with torch and no package beside.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.on_gpu "$@"
