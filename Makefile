# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
XDIST ?= 2

.PHONY: demo test test-quick lint format setup setup-test readers slurm bench clean

## demo: a whole haul from the embedded archive site, with the local scheduler
demo: $(VENV)/.demo
	rm -rf demo-run
	$(BIN)/medhaul demo demo-run

## test: all tests; as root on Debian a Slurm and third-party archive readers are installed for them
test: $(VENV)/.test readers slurm
	$(BIN)/python -m pytest -n $(XDIST) $(PYTEST_ARGS)

## test-quick: without the tests that need third-party programs or a Slurm
test-quick: $(VENV)/.test
	$(BIN)/python -m pytest -n $(XDIST) -m "not external and not slurm" $(PYTEST_ARGS)

## lint: format, lint, types, shell scripts
lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck slurm/*.sh .ci/run tools/*.sh

## format: rewrite in the house format
format: $(VENV)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## bench: all benchmarks, short
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

setup: $(VENV)/.demo
setup-test: $(VENV)/.test

readers:
	@bash tools/install_readers.sh

slurm:
	@bash tools/install_slurm.sh

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "medhaul needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[progress]'
	touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

$(VENV)/.lint: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) demo-run build dist *.egg-info
