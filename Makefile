# `make run` and `make test` do everything on a fresh machine: Python 3.11 or newer, pip and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests spread over the cores; more threads than that only get in each other's way.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help install run ui test slow soak lint format system clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some 6 GB; minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP) ## set up .venv; does nothing the second time

run: install ## run the main job on the built-in example
	@$(BIN)/triptych run

ui: install ## the web UIs of Dagster and MLflow
	@$(BIN)/triptych ui

test: install ## the default tests
	@$(TEST)

slow: install ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 1200

soak: install ## the tests that take hours
	@$(BIN)/python -m pytest -m soak --timeout 0

lint: install ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: install ## ruff's fixes and format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
system: ## Debian packages that some tests need (they say so when they skip)
	@command -v apt-get >/dev/null || { echo "apt-get is not here: install chromium by hand"; exit 0; }; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium >/dev/null

clean: ## remove .venv and caches; .triptych (your state) stays
	@rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
