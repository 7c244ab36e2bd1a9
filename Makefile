# `make serve` and `make test` do all the set-up they need; a second run starts at once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests want torch's CPU build; an index that has it can be given with PIP_EXTRA_INDEX_URL.
TORCH ?= torch==2.13.0

.PHONY: serve test lint format clean help

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

serve: $(VENV)/.stamp-demo ## serve the embedded demo model; ARGS="--port 9000" passes options on
	$(BIN)/astraea-local serve $(ARGS)

test: $(VENV)/.stamp-test ## the whole test suite; ARGS="-k chat" selects
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.stamp-test ## style, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp-test ## rewrite to the house style
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)

# llama.cpp is compiled here, once: several minutes in which pip alone would be silent.
$(VENV)/.stamp-demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing; the first time compiles llama.cpp, which takes several minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[demo]'
	@touch $@

$(VENV)/.stamp-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing; the first time compiles llama.cpp, which takes several minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -q '$(TORCH)'
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[test]'
	@touch $@ $(VENV)/.stamp-demo
