# The same commands as CI; each works without a GPU and sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= runs/quick
PATHS := attnbench backends suites tests tools

.PHONY: bench test test-all jax lint format types wheel docs perf interpret selftest gpu clean

# A virtual environment of the repository's own, made again when what it needs changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

bench: $(READY)  ## run the quick suite on every backend, print the table, draw the charts, make the page
	rm -rf $(OUT)
	$(BIN)/attnbench run quick --out $(OUT)
	$(BIN)/attnbench report $(OUT) --out $(OUT)/report --html $(OUT)/report.html

test: $(READY)  ## the tests
	$(BIN)/python -m pytest tests -m "not slow and not interpret"

test-all: $(READY)  ## the tests, the long ones too
	$(BIN)/python -m pytest tests

interpret: $(READY)  ## the long half of the Triton interpreter's tests
	$(BIN)/python -m pytest tests/triton -m interpret

# Its own environment, beside .venv and made once; a package index that stumbles is asked once more.
jax: export ATTNBENCH_ENVS = $(CURDIR)/$(VENV)/envs
jax: export ATTNBENCH_TEST_JAX = 1
jax: $(READY)  ## JAX and flax in an environment of their own, and their tests (about 50 s of CPU)
	$(BIN)/attnbench env create jax || $(BIN)/attnbench env create jax
	$(BIN)/python -m pytest tests/environments/test_jax.py

lint: $(READY)
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)

format: $(READY)
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

types: $(READY)
	$(BIN)/mypy

wheel: $(READY)  ## build the wheel and try it in a clean environment beside decoys
	PYTHON=$(BIN)/python bash tools/try-wheel

docs: $(READY)  ## the documentation's code blocks and links, and the site in site/
	$(BIN)/python tools/command_line_page.py --check
	$(BIN)/python -m pytest tests/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

selftest: $(READY)  ## does the judge catch liars, and leave the right ones alone? (within 20 minutes)
	$(BIN)/attnbench selftest --full --write docs/selftest.md

perf: $(READY)  ## what the harness itself costs, as ratios measured side by side
	$(BIN)/python tests/perf/costs.py
	$(BIN)/python tests/perf/conformance.py

gpu: ## the GPU part, most valuable first, resumable; needs a CUDA torch that is already installed
	$(PYTHON) tools/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
