# Targets for people; CI runs the same ones through .ci/run. Works with GNU make 3.81 and later.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH ?=
SHELL := /bin/sh
VENV := .venv
TOOLS := .venv-tools
BIN := $(VENV)/bin
CODE := src tests scripts examples

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check test-matrix bench services lock docs format clean

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## "; print "Targets:" } \
	     /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 } \
	     END { print "\nPYTHON=/path/to/python3 picks the interpreter (3.10 or newer) that .venv is made with." }' \
	     $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.stamp ## Run the example shop under load, break it, and open the report: demo-out/
	@$(BIN)/apivitals demo --out demo-out

test: $(VENV)/.stamp ## Run the unit and integration tests; PYTEST_ARGS="-k routes" narrows them
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile tests/unit tests/integration $(PYTEST_ARGS)

check: $(VENV)/.stamp ## Check formatting, lint, types, import rules and generated docs
	@echo "formatting"; $(BIN)/ruff format --check --quiet $(CODE) || { echo "make format  puts it right"; exit 1; }
	@echo "lint"; $(BIN)/ruff check --quiet $(CODE)
	@echo "types"; $(BIN)/mypy src scripts/docs.py
	@echo "import rules"; $(BIN)/lint-imports
	@echo "generated docs"; $(BIN)/python scripts/docs.py --check

test-matrix: ## Run the server tests on every FastAPI line we support
	@$(PYTHON) scripts/matrix

bench: $(VENV)/.stamp ## Measure what telemetry costs, ours and others'; BENCH="--only cpu --rounds 9" narrows it
	@$(BIN)/python -m tests.benchmarks.overhead $(BENCH)

services: ## Install the servers that some tests talk to, or say how to
	@scripts/services

lock: $(TOOLS)/.stamp ## Write the locks in requirements/ again; UPGRADE=1 takes the newest versions
	@scripts/lock $(TOOLS)/bin/python $(if $(UPGRADE),--upgrade)

docs: $(VENV)/.stamp ## Write docs/telemetry.md and docs/configuration.md from the code
	@$(BIN)/python scripts/docs.py

format: $(VENV)/.stamp ## Format the code and fix what lint can fix
	@$(BIN)/ruff check --quiet --fix-only $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

clean: ## Remove environments, caches, demo-out and dist
	@rm -rf $(VENV) $(TOOLS) .venv-matrix .venv-bench demo-out dist build
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/.stamp: requirements/dev.txt pyproject.toml scripts/venv
	@scripts/venv "$(PYTHON)" $(VENV) requirements/dev.txt --editable
	@touch $@

$(TOOLS)/.stamp: requirements/tools.txt scripts/venv
	@scripts/venv "$(PYTHON)" $(TOOLS) requirements/tools.txt
	@touch $@
