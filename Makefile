# One command each; every one sets up .venv from the lock file first if it has to.
.DEFAULT_GOAL := help
.PHONY: help setup run test check lint types ui stop bench lab studies clean

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:            ## list the commands
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/ready  ## make .venv from requirements.lock

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("tsvlib needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: setup       ## merge, compress, evaluate and compare the suite of params.yaml
	$(BIN)/dvc repro
	@$(BIN)/tsv compare
	@echo "Look closer: 'make ui' opens MLflow and Prefect; plots are in plots/."
	@$(BIN)/python -m flows.server stop

test: setup      ## every test
	$(BIN)/python -m pytest

check: lint types test  ## what CI runs

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

ui: setup        ## MLflow and Prefect pages on loopback, until Ctrl-C
	$(BIN)/python -m flows.ui

stop: setup      ## stop the local Prefect server
	$(BIN)/python -m flows.server stop

bench: setup     ## speed, memory and error against the paper's algorithm
	$(BIN)/python -m benchmarks

lab: setup       ## lab-8, lab-14 and lab-20 on three seeds, for the tables of README.md
	$(BIN)/tsv lab measure --out docs/lab --force

studies: setup   ## the paper's analyses on lab-8, for docs/studies.md
	$(BIN)/tsv lab make lab-8
	$(BIN)/tsv study all --suite lab-8 --out docs/studies/lab-8 --force

clean:           ## remove what 'make run' made, keep .venv
	rm -rf data models plots registry predictions sweeps .tsv mlflow.db mlruns
