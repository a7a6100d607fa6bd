# make demo and make test work from a bare clone with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo
# Tests run in this many processes, each with one thread for XLA.
WORKERS ?= 2

.PHONY: demo test test-all lint bench clean

# Installs once; again only when the dependencies change.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "primia_jax needs Python 3.11 or later; set PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m primia_jax.launch --config=configs/demo.py --mode=demo --workdir=$(WORKDIR)

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m 'not slow'

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --faults=docs/faults.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.federated_round
	$(BIN)/python -m benchmarks.protocols --quick

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
