# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

# Every command of the project; each makes the environment `.venv` first if need be.

# The pins were made with Python 3.12, so it comes first.
PYTHON ?= $(shell for python in python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/installed
UV_INSTALL = UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install \
	--build-constraints constraints.txt
SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: quickstart test test-slow lint package minimum benchmark install constraints clean

## Pre-train on the Landsat scene that the package ships (about 2 minutes on a CPU).
quickstart: $(STAMP)
	$(BIN)/torchgeo fit --config experiments/quickstart.yaml

## Linter, type checker, and the tests with the network blocked, bar the slow ones.
test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m 'not slow' --cov=torchgeo_cmid \
	--cov-fail-under=95

## The slow ones: every cell of the table of transfer, chains of interruptions, signals.
test-slow: $(STAMP)
	$(BIN)/pytest -n 2 --dist worksteal -m slow

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

## Build the wheel, try it in an empty environment, uninstall it without a trace.
package: $(STAMP)
	$(BIN)/python tests/package/check_wheel.py

## The tests with the lowest versions that pyproject.toml allows.
minimum: $(STAMP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/minimum
	VIRTUAL_ENV=build/minimum $(UV_INSTALL) --resolution lowest-direct -e '.[dev]'
	build/minimum/bin/pytest -n 2 --dist worksteal

## What the import hook, a training step (next to TorchGeo's other methods), and the
## published weights cost, and how fast views and patches come next to plain kornia's
## and TorchGeo's (three quarters of an hour in all).
benchmark: $(STAMP)
	$(BIN)/python experiments/benchmarks/startup.py
	$(BIN)/python experiments/benchmarks/training_step.py
	$(BIN)/python experiments/benchmarks/conversion.py
	$(BIN)/python experiments/benchmarks/methods.py
	$(BIN)/python experiments/benchmarks/views.py
	$(BIN)/python experiments/benchmarks/data.py --cache 64

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt torchgeo_cmid.pth
	@test -x $(BIN)/python || test -n '$(PYTHON)' || { echo >&2 \
	'No Python 3.12 or newer found: name one by make PYTHON=/path/to/python'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	VIRTUAL_ENV=.venv $(UV_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

## Pin the newest versions that pyproject.toml allows (needs no pins, so not $(STAMP)).
constraints:
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/constraints
	VIRTUAL_ENV=build/constraints $(BIN)/uv pip install hatchling -e '.[dev]'
	{ sed -n '/^#/p' constraints.txt; \
	VIRTUAL_ENV=build/constraints $(BIN)/uv pip freeze --exclude-editable; } > pins.tmp
	mv pins.tmp constraints.txt
	rm -r build/constraints

clean:
	rm -rf .venv build dist .coverage .mypy_cache .pytest_cache .ruff_cache
