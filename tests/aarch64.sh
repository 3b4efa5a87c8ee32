#!/usr/bin/env bash
# The operators' tests on aarch64, emulated: `make aarch64`. The kernels are cross-compiled (vec.h's plain floats become
# NEON) and run under qemu-user by Debian's Python for arm64, beside the oldest torch that is promised, whose wheel for
# aarch64 needs no CUDA. Debian only, and root for its cross-compiler: elsewhere it says why nothing was run.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/aarch64
mkdir -p "$work"/{lists/partial,archives/partial,packages,root,site}

skip() {
  echo "aarch64: skipped: $1"
  exit 0
}
if ! { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64-static; } >/dev/null; then
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || skip "no aarch64-linux-gnu-g++ and qemu-aarch64-static"
  apt-get install --yes --no-install-recommends g++-aarch64-linux-gnu qemu-user-static >/dev/null ||
    skip "apt has no cross-compiler"
fi

# A Python for arm64, unpacked beside the system, which stays as it is.
python=$work/root/usr/bin/python3.11
if [ ! -x "$python" ]; then
  apt=(-o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/archives")
  names=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g
    libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1)
  apt-get "${apt[@]}" update --quiet=2 || skip "apt has no packages for arm64"
  (cd "$work/packages" && apt-get "${apt[@]}" download --quiet=2 "${names[@]/%/:arm64}") || skip "no Python 3.11 for arm64"
  for package in "$work"/packages/*.deb; do dpkg -x "$package" "$work/root"; done
fi

pip=(.venv/bin/python -m pip --quiet)
if [ ! -d "$work/site/torch" ]; then
  wheels=(--target "$work/site" --python-version 3.11 --only-binary=:all:)
  for glibc in 2_17 2_26 2_27 2_28; do wheels+=(--platform "manylinux_${glibc}_aarch64"); done
  "${pip[@]}" install "${wheels[@]}" torch==2.10.0 pytest numpy scipy onnx safetensors click tqdm platformdirs pillow \
    opencv-python-headless jinja2 lazy-loader || skip "no wheels for aarch64"
fi

# CMake finds the torch of PYTHONPATH only where the interpreter has none of its own.
bare=$work/python
.venv/bin/python -m venv --without-pip "$bare"
include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
export PYTHONPATH=$work/site
cmake -G Ninja -S . -B "$work/objects" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DPREFIQS_CUDA=OFF \
  -DPython_EXECUTABLE="$bare/bin/python" -DPython_INCLUDE_DIR="$include" \
  -Dpybind11_DIR="$(env -u PYTHONPATH .venv/bin/python -m pybind11 --cmakedir)" \
  -DPYTHON_MODULE_EXTENSION=.cpython-311-aarch64-linux-gnu.so
cmake --build "$work/objects"

package=$work/package
rm -rf "$package"
mkdir "$package"
cp -r prefiqs_ext tests pyproject.toml "$package"
cp "$work"/objects/*.so "$package/prefiqs_ext"
cd "$package"
PYTHONPATH=$package:$work/site qemu-aarch64-static -L "$work/root" "$python" -m pytest -p no:cacheprovider --quiet \
  tests/test_ops*.py -k "not test_compile" # which needs a C++ compiler for arm64
