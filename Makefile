# Each target sets up .venv where that is needed; the second time it is there already.
PYTHON ?= python3
BIN := .venv/bin
OLD := .venv-floors
INSTALL := $(BIN)/python .ci/install.py
# A test works on one processor as a rule; each process of theirs takes a gigabyte.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal
# What uses other packages: compiled code, linear algebra, POT, HDF5, scikit-learn, faiss, plots, pages, training loops.
CORE := cluster metrics reporting selflabel/stores commands/test_cli.py commands/test_clustering_command.py \
	selflabel/test_callbacks.py selflabel/test_kmeans.py solver/test_constraints.py solver/test_entropic.py \
	solver/test_exact.py solver/test_impossible_rules.py solver/test_prices.py solver/test_sample_masses.py \
	solver/test_unbalanced.py sources/test_linear_scores.py sources/test_other_files.py sources/test_reading.py \
	sources/test_shared_sources.py sources/test_sources.py sweep/test_sweep.py test_bad_input.py test_curation.py \
	test_lp.py test_path.py test_pictures.py test_progress.py test_result.py test_soft_assign.py test_system.py

# What most wrong changes break: the answers of the solver, whatever rows come from, and the labels of training.
QUICK := project/test_layout.py selflabel/test_labelings.py selflabel/test_loss.py selflabel/test_recorded.py \
	selflabel/test_saved_labels.py selflabel/test_selflabel.py \
	solver/test_constraints.py solver/test_entropic.py solver/test_exact.py solver/test_proof.py \
	solver/test_reference_path.py solver/test_sample_masses.py sources/test_device.py sources/test_inputs.py \
	sources/test_opened.py sources/test_read_faults.py sources/test_reading.py sources/test_refused_files.py \
	sources/test_shared_sources.py

.DEFAULT_GOAL := help
.PHONY: help demo test quick floors docs dist bench kernels lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv/installed ## label scikit-learn's digits; writes otlabel-demo/
	$(BIN)/otlabel demo

test: .venv/installed ## run the tests, on up to four processors
	$(BIN)/python -m pytest $(PARALLEL)

quick: .venv/installed ## run the tests that matter most, in under a minute
	$(BIN)/python -m pytest $(PARALLEL) $(QUICK:%=tests/%)

floors: $(OLD)/installed ## run the core tests with the oldest packages that pyproject.toml allows
	NUMBA_CACHE_DIR=$(CURDIR)/$(OLD)/compiled $(OLD)/bin/python -m pytest -m "not slow" $(PARALLEL) $(CORE:%=tests/%)

docs: .venv/installed ## build docs/_build/html; FIGURES=1 redraws all pictures first
	$(if $(FIGURES),$(BIN)/python docs/figures.py --demo && $(BIN)/python docs/outputs.py)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

dist: .venv/dist ## build wheel and sdist, check them, and try them where no checkout is near (ten minutes)
	@rm -rf build dist
	@$(BIN)/python -m build -o dist . > dist.log || (cat dist.log; exit 1)
	@rm dist.log
	@$(BIN)/python -m twine check --strict dist/*
	@$(BIN)/python .ci/try_dist.py dist $(CORE)

bench: .venv/bench ## time otlabel against other solvers, in one run
	$(BIN)/python benchmarks/bench_solvers.py

kernels: .venv/kernels ## test the GPU kernels without a GPU, in Triton's interpreter
	PYTHONPATH=.venv/triton $(BIN)/python -m pytest tests/sweep/test_cuda.py

lint: .venv/installed ## check style, layout and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove both environments and all that the other targets wrote
	rm -rf .venv $(OLD) build dist docs/_build docs/api docs/gallery docs/notebooks otlabel-demo .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find otlabel tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv: packages, then compiling (two to five minutes, the first time only)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) "otlabel and what it needs" -c constraints.txt -e ".[dev,docs,exact,examples,kmeans,report]"
	@$(BIN)/otlabel warmup
	@touch $@

$(OLD)/installed: pyproject.toml constraints.txt tests/floors.py
	@$(PYTHON) -m venv --clear $(OLD)
	@$(OLD)/bin/python tests/floors.py > $(OLD)/floors.txt
	@$(OLD)/bin/python .ci/install.py "the oldest packages allowed" -c $(OLD)/floors.txt -e ".[all,dev]"
	@touch $@

# The first whose interpreter works with the NumPy of constraints.txt. Apart, since torch goes with another one.
.venv/kernels: .venv/installed
	@$(INSTALL) "Triton's interpreter" --no-deps --target .venv/triton --upgrade triton==3.9.0
	@touch $@

.venv/dist: .venv/installed
	@$(INSTALL) "what builds and checks archives" -c constraints.txt build twine
	@touch $@

.venv/bench: .venv/installed benchmarks/requirements.txt
	@$(INSTALL) "other solvers" -c constraints.txt -r benchmarks/requirements.txt
	@touch $@
