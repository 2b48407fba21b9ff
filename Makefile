# What a checkout can do with nothing but Python >= 3.11 and make. Each target sets up what it needs in .venv, once.
#
#   make demo        installs redraft and lets the shipped model answer PROMPT, its text resolving out of noise
#   make test        sets up the test environment and runs the tests (make test-slow: those that take minutes)
#   make lint        ruff and mypy
#   make tiny        trains the shipped model anew and rewrites every number (DATA=dialogues_sgd.jsonl.xz, 2.5 hours)
#   make clean       removes the environment and all caches
#
# PYTHON=python3.12 picks another interpreter, VENV=DIR another place, ARGS="-k rope" goes to pytest.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= Hi, I need a table for two in San Jose tonight.
ARGS ?=

BIN := $(VENV)/bin
# The constraints go with every install: without them pip may take versions that nobody tested.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SETTINGS := pyproject.toml constraints.txt

.PHONY: help demo test test-slow lint tiny clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   make /make /p' Makefile

# The first answer is slowed down and settles slot by slot, to be seen; the second is what the engine does by default.
demo: $(VENV)/.base
	@$(BIN)/redraft run --threshold 0.7 --delay 0.1 "$(PROMPT)"
	@$(BIN)/redraft run --json "$(PROMPT)"

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# pytest's status 5 says that no test is marked slow: nothing to run is no failure.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow $(ARGS) || test $$? -eq 5

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tiny: $(VENV)/.test
	@test -n "$(DATA)" || { echo "make tiny needs DATA=dialogues_sgd.jsonl.xz, see recipes/tiny.yaml" >&2; exit 2; }
	$(BIN)/python recipes/release.py "$(DATA)"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second run finds them newer than the settings and installs nothing. The checkout is installed in place,
# so that a change of the source needs no new installation.
$(VENV)/.python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "redraft needs Python 3.11 or newer and found no $(PYTHON); name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "redraft needs Python 3.11 or newer, this is $$("$(PYTHON)" --version 2>&1); name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "$(PYTHON) -m venv failed: install the venv module of this Python (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.base: $(VENV)/.python $(SETTINGS)
	@echo "Installing redraft into $(VENV) (some minutes the first time) ..." >&2
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.python $(SETTINGS)
	@echo "Installing redraft and its tests' needs into $(VENV) (some minutes the first time) ..." >&2
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.base

$(VENV)/.dev: $(VENV)/.python $(SETTINGS)
	@echo "Installing redraft, ruff and mypy into $(VENV) (some minutes the first time) ..." >&2
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.base $(VENV)/.test
