# Each target sets up .venv where that is needed; the second time it is there already.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test docs bench kernels lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv/installed ## label scikit-learn's digits; writes otlabel-demo/
	$(BIN)/otlabel demo

test: .venv/installed ## run the tests
	$(BIN)/python -m pytest

docs: .venv/installed ## build docs/_build/html; FIGURES=1 redraws all pictures first
	$(if $(FIGURES),$(BIN)/python docs/figures.py --demo)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: .venv/bench ## time otlabel against other solvers, in one run
	$(BIN)/python benchmarks/bench_solvers.py

kernels: .venv/kernels ## test the GPU kernels without a GPU, in Triton's interpreter
	$(BIN)/python -m pytest tests/test_cuda.py

lint: .venv/installed ## check style, layout and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and all that the other targets wrote
	rm -rf .venv build dist docs/_build docs/gallery otlabel-demo .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find otlabel tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt -e ".[dev,docs,exact,examples,kmeans,report]"
	touch $@

.venv/kernels: .venv/installed
	$(PIP) install -c constraints.txt triton
	touch $@

.venv/bench: .venv/installed benchmarks/requirements.txt
	$(PIP) install -c constraints.txt -r benchmarks/requirements.txt
	touch $@
