# `make help` lists the targets. Needs Python 3.11+, a Java 17 or 21 runtime and make; nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The last one, common in images, would have every process and every Spark worker compile its imports anew.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
# Two workers, each with its own Spark; a file's tests stay together, long files (tests/e2e) start first.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
PY := $(BIN)/python

.PHONY: help setup demo test test-all faults bench lint notebooks bundle lock audit-deps clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/.locked: requirements.lock requirements-bootstrap.lock
	@$(PYTHON) scripts/preflight.py
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --require-hashes -r requirements-bootstrap.lock
	@$(PY) -m uv pip sync --quiet --python $(PY) --require-hashes requirements.lock requirements-bootstrap.lock
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml setup.py
	@$(PY) -m uv pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.jars: .venv/.installed
	@echo "resolving the Delta jars (once)"
	@$(PY) -m dynamix.jobs.jars > /dev/null
	@touch $@

setup: .venv/.jars ## private .venv from the hashed lock, Delta jars into the cache

demo: setup ## the demo: a first small world, then the full one, report and registered model
	@$(BIN)/dynamix demo --out demo

test: setup ## the suite that CI runs
	@$(PY) -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-all: setup ## the suite with crash matrix, soak and large fuzz
	@$(PY) -m pytest $(SIDE_BY_SIDE)

faults: setup ## the tests of docs/faults.md, then its 44 rows with their outcomes and the crash matrix
	@$(PY) -m tests.faults

PART ?= worlds
bench: setup ## the claims of the README, measured on this machine (PART=worlds, headline, rankers, gates, segmenters, features, increment, soak, quality, serving or kernels)
	@$(PY) -m benchmarks $(PART)

.typing: setup.py $(wildcard src/dynamix/*.py)
	@rm -rf .typing && mkdir -p .typing/dynamix
	@for f in features segmentation models jobs; do ln -s ../../$$f .typing/dynamix/$$f; done
	@for f in src/dynamix/*.py src/dynamix/py.typed; do ln -s ../../$$f .typing/dynamix/; done

lint: setup .typing ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p dynamix

notebooks: demo ## execute every notebook on the demo's warehouse, and write them for Jupyter
	@$(PY) -c 'import runpy, sys; [(print(page), runpy.run_path(page)) for page in sys.argv[1:]]' notebooks/*.py
	@$(PY) scripts/notebooks_to_jupyter.py notebooks/*.py --out demo/jupyter

TARGET ?= dev
bundle: setup ## build the wheel of the Databricks bundle and check the bundle (TARGET=dev, staging or prod)
	@$(PY) scripts/bundle_wheel.py
	@$(PY) -m pytest tests/bundle --verbose --no-header
	@if command -v databricks > /dev/null; then databricks bundle validate --target $(TARGET); \
	else echo "NOT RUN: databricks bundle validate, as there is no databricks command on PATH (docs/deploy.md)"; fi

lock: ## resolve the lock anew from pyproject.toml and constraints.in
	@$(PY) -m uv pip compile pyproject.toml --extra dev --extra connect -c constraints.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet --upgrade -o requirements.lock

audit-deps: setup ## look the lock up in an advisory database (network; docs/security.md)
	@$(PY) -m uv tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes --progress-spinner off \
	  -r requirements.lock -r requirements-bootstrap.lock

clean: ## remove the environment and everything the demo wrote
	@rm -rf .venv .typing demo build dist *.egg-info src/*.egg-info
