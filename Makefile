# The same commands as CI; each works without a GPU and sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= runs/quick
PATHS := attnbench backends suites tests tools

.PHONY: bench test test-all jax lint format types wheel site docs versions perf interpret selftest gpu clean

# The repository's own virtual environment, made again when its requirements change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

bench: $(READY)  ## run the quick suite on every backend, print one screen, draw the charts, make the page
	rm -rf $(OUT)
	$(BIN)/attnbench run quick --out $(OUT) --report

# One process per core, of one thread each; pytest-benchmark works in a lone process only.
test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile -m "not slow and not interpret and not benchmarks"
	$(BIN)/python -m pytest tests/suites -m benchmarks

test-all: $(READY)  ## the tests, the long ones too
	$(BIN)/python -m pytest tests

interpret: $(READY)  ## the long half of the Triton interpreter's tests
	$(BIN)/python -m pytest tests/triton -m interpret

# An environment of its own, inside .venv and made once; a download that fails is tried once more.
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

wheel: $(READY)  ## build the wheel and try it in a clean environment, beside decoy folders
	PYTHON=$(BIN)/python bash tools/try-wheel

site: $(READY)  ## the documentation's site in site/, from generated pages that are up to date
	$(BIN)/python tools/command_line_page.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: site  ## the site, and the documentation's code blocks and links
	$(BIN)/python -m pytest tests/docs

selftest: $(READY)  ## count the planted bugs that the judge catches and its false alarms (some 40 minutes on 2 cores)
	$(BIN)/attnbench selftest --full --write docs/selftest.md

versions: $(READY)  ## the tests and the quick suite on the oldest and the newest torch, and on Python 3.12 (not in CI)
	PYTHON=$(BIN)/python bash tools/try-versions

perf: $(READY)  ## measure what the harness itself costs, as ratios side by side
	$(BIN)/python tests/perf/costs.py
	$(BIN)/python tests/perf/conformance.py
	$(BIN)/python tests/perf/first_case.py

gpu: ## everything that needs a GPU, most valuable first, resumable; needs an installed CUDA torch
	$(PYTHON) tools/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
