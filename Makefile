SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# `make run` and `make test` do everything on a fresh machine: Python 3.11 or newer, pip and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests spread over the cores; more threads than that only get in each other's way.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help install run ui test slow soak models lint format system clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@# Debian's python3 comes without the ensurepip that venv wants, but its pip can install into another Python.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@echo "Installing into $(VENV) (some 6 GB; minutes the first time) ..."
	@# Wheels are unpacked beside the target: /tmp may be small.
	@mkdir -p $(VENV)/tmp && TMPDIR=$(abspath $(VENV)/tmp) $(BIN)/python -m pip install --disable-pip-version-check \
	  --progress-bar off -c constraints.txt -e '.[dev]' | \
	  sed -unE 's/^ *(Downloading|Using cached) ([^ ]+) (\([0-9]{2,}\.[0-9] MB\))/  \1 \2 \3/p; s/^(Installing).*/  \1 .../p'
	@rm -rf $(VENV)/tmp && touch $@

install: $(STAMP) ## set up .venv; does nothing the second time

run: install ## run the main job on the built-in example
	@$(BIN)/triptych run

ui: install ## the web UIs of Dagster and MLflow
	@$(BIN)/triptych ui

test: install ## the default tests
	@$(TEST)

slow: install ## the tests that take minutes
	@$(TEST) -m 'slow and not soak and not gpu' --timeout 1200 || test $$? -eq 5 # 5: there are none

soak: install ## the tests that take hours
	@$(BIN)/python -m pytest -m soak --timeout 0

models: install ## real pretrained encoders for the tests that can use them, into models/ (1.1 GB)
	@$(BIN)/python ../shared/models/prepare.py models

lint: install ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: install ## ruff's fixes and format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PACKAGES := chromium mariadb-client-core mariadb-server-core postgresql tmux
system: ## Debian packages that some tests need (they say so when they skip)
	@if ! command -v apt-get >/dev/null; then \
	  echo "apt-get is not here: the tests that need $(PACKAGES) skip unless you install these yourself"; \
	elif ! { $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); } >/dev/null; then \
	  echo "apt-get failed: the tests that need $(PACKAGES) skip"; \
	fi

clean: ## remove .venv and caches; .triptych (your state) stays
	@rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
