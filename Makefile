# `make help` lists the targets. Everything is installed into .venv, by name, from the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
TESTS ?= tests
PYTEST = $(BIN)/pytest --numprocesses auto --dist worksteal --durations 10
TAG ?=
.PHONY: help setup demo demo-live format check test pytest nightly guarantees bench soak release-check clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

setup: $(INSTALLED) ## Install everything into .venv, and let git check each commit
	$(BIN)/pre-commit install

demo: $(INSTALLED) ## Three simulated days, half a minute live, and the proof that all figures agree
	$(BIN)/python -m lockstep.demo

demo-live: $(INSTALLED) ## All live: a company in a PostgreSQL of the demo's own, captured and proven while it works
	$(BIN)/python -m lockstep.demo_live

format: $(INSTALLED) ## Format Python and SQL
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/sqlmesh format

check: $(INSTALLED) ## Formatting, linting and types of Python and SQL, and phrases that read badly
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/sqlmesh format --check
	$(BIN)/sqlmesh lint
	$(BIN)/python tests/prose.py

test: check pytest ## The checks and every test

pytest: $(INSTALLED) ## Every test, those of the models included; of one folder: make pytest TESTS=tests/unit
	$(PYTEST) -p no:randomly $(TESTS)

nightly: $(INSTALLED) ## Every test in random order, then the long forms: more kills, more generated logs
	SLURM_CPUS_ON_NODE=$$(nproc) $(PYTEST) $(TESTS)
	HYPOTHESIS_EXAMPLES=60 $(PYTEST) -m "long or generated" $(TESTS)

guarantees: $(INSTALLED) ## Write the table of docs/guarantees.md anew from the tests
	$(BIN)/python tests/guarantees.py

bench: $(INSTALLED) ## Measure landing, hourly, rebuild and live beside bare DuckDB
	$(BIN)/python bench/bench.py

soak: $(INSTALLED) ## Eight readers without pause through fifty runs, publications and compactions; about a quarter of an hour
	$(BIN)/python tests/soak.py

release-check: $(INSTALLED) ## Build the wheel and use it in an empty environment; TAG=v0.2.0 also checks version and changelog
	.ci/release $(TAG)

clean: ## Remove the virtual environment, the demo's data and the built wheel
	rm -rf $(VENV) build data dist logs
