# Everything starts here: `make run`, `make test`. Nothing is installed outside .venv.
#
#   PYTHON=python3.12 make setup            another interpreter (3.11 or newer)
#   TORCH_INDEX_URL=<url> make setup        take torch from this index, for example PyTorch's index of CPU
#                                           wheels on a Linux machine without a GPU (saves gigabytes)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX_URL ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Modules are compiled when first imported: compiling all of them takes longer than everything else together.
PIP_INSTALL := $(BIN)/python -m pip install --no-compile --quiet --quiet --disable-pip-version-check --constraint constraints.txt

# One thread for every numeric library: the work is many small calls, and tests must not depend on the machine.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export VECLIB_MAXIMUM_THREADS ?= 1
export NUMEXPR_NUM_THREADS ?= 1

.PHONY: help setup run test test-all lint bench soak clean

help:
	@echo "make setup     create .venv and install everything into it"
	@echo "make run       the offline demonstration (no account, no network)"
	@echo "make test      the fast tests"
	@echo "make test-all  every test at full length, the slow proofs included"
	@echo "make lint      style, types and import arrows"
	@echo "make bench     the benchmarks (minutes)"
	@echo "make soak      20,000 closes over HTTP: does the daemon grow?"
	@echo "make clean     remove .venv, caches and build output (never var/, models/ or runs/)"

setup: $(STAMP)

# torch first, by itself: only it may come from TORCH_INDEX_URL. The build backend is installed and pinned
# like everything else, and the editable build uses it instead of fetching its own.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "No '$(PYTHON)' found. Install Python 3.11 or newer, or name one: PYTHON=/path/to/python3 make setup" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); 3.11 or newer is needed. Name one: PYTHON=python3.11 make setup" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) hatchling editables
	@$(PIP_INSTALL) $(if $(TORCH_INDEX_URL),--no-deps --index-url "$(TORCH_INDEX_URL)") torch
	@$(PIP_INSTALL) --no-build-isolation --editable '.[train,dev,postgres]'
	@touch $@

run: setup
	@$(BIN)/tandem demo

test: setup
	@$(BIN)/python -m pytest

test-all: setup
	@TANDEM_FULL=1 $(BIN)/python -m pytest -m "slow or not slow"

lint: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup
	@for name in commands operations environment learner replay fast_replay evaluation cycle daemon; do $(BIN)/python tests/benchmarks/bench_$$name.py; done

soak: setup
	@$(BIN)/python tests/benchmarks/bench_soak.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
