# `make demo` and `make test` do all set-up in .venv on a machine with Python 3.11, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test faults lint

# Remade only when what is to be installed has changed.
$(READY): requirements.txt requirements-dev.txt setup.py
	@echo "Setting up $(VENV): PyTorch is large, the first time takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements-dev.txt -e .
	@touch $@

demo: $(READY)
	$(BIN)/ipython scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Hours: every fault, in both stages, in one process and in two. It goes on where it was interrupted.
faults: $(READY)
	$(BIN)/python -m tests.faults

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
