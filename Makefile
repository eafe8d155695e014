# Everything runs in .venv, which is made on first use and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.core
DEV    := $(VENV)/.dev
DOCS   := $(VENV)/.docs
# --no-compile: Python compiles the few modules that are imported, not all of torch; saves half a minute. It has to be
# allowed to keep what it compiled, or each process would start with all of it again.
unexport PYTHONDONTWRITEBYTECODE
TESTS  := $(BIN)/pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal
PIP    := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu lint format types golden bench bench-gpu docs clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(CORE) ## fine-tune the embedded model on a drawing style; compare before and after
	$(BIN)/sdtune demo

test: $(DEV) ## all tests but the slow ones and those that need a GPU
	$(TESTS) -m "not slow and not gpu"

test-slow: $(DEV) ## the slow tests
	$(TESTS) -m "slow and not gpu"

test-gpu: $(DEV) ## the tests that need a CUDA device
	$(BIN)/pytest -q -m gpu

lint: $(DEV) ## style, formatting, imports between layers, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/typos

format: $(DEV) ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(DEV) ## mypy, strict, on src and tests
	$(BIN)/mypy

golden: $(DEV) ## write the golden losses anew; say in the commit why they changed
	$(BIN)/pytest -q tests/test_golden.py --update-golden
	@git --no-pager diff --stat -- tests || true

bench: $(DEV) ## our training against the plain loop, on this CPU
	$(BIN)/python benchmarks/bench_cpu.py

bench-gpu: $(DEV) ## training at real size on a CUDA device
	$(BIN)/python benchmarks/bench_gpu.py

docs: $(DOCS) ## the documentation, into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove caches and built files; runs and .venv stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove .venv as well
	rm -rf $(VENV)

# ---- set-up: one stamp for each set of packages

$(BIN)/pip:
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"sdtune needs Python 3.11 or newer and this is {v[0]}.{v[1]}; try: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) --editable '.[dev]'
	@touch $(CORE) $@

$(DOCS): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) --editable '.[docs]'
	@touch $(CORE) $@
