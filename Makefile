# `make help` lists what can be made. Needs Python 3.11 or newer, make and git; nothing needs root.
.SHELLFLAGS := -eu -c
.DEFAULT_GOAL := help
.PHONY: help demo serve loop-demo test check test-all bench docs format lock clean

# PYTHON=/path/to/python3.11 chooses another; WORKERS=1 runs the tests one after the other.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
  $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$python; break; }; done)
WORKERS ?= 2
PORT ?= 8000

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --no-deps --disable-pip-version-check -qq
FLIGHTS := examples/flights

help: ## Shows this list.
	@echo "Tidemill: from a table, or a model you have, to a served package."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.run ## Trains on real flights, packages, serves, asks for a prediction, shows the report. Two minutes.
	@$(BIN)/python $(FLIGHTS)/demo.py

serve: .venv/.run ## Keeps serving the demo's model on port 8000 (PORT=...), until Ctrl-C. Run `make demo` once before.
	@[ -e $(FLIGHTS)/.tidemill/ledger.db ] || { echo "There is no model to serve yet: run 'make demo' first" >&2; exit 1; }
	@cd $(FLIGHTS) && $(CURDIR)/$(BIN)/tidemill serve flights --port $(PORT)

loop-demo: .venv/.run ## Drift, retraining, a refused challenger, a promotion, a rollback: the circle in a minute.
	@$(BIN)/python $(FLIGHTS)/loop.py

test: .venv/.test ## Runs the tests. Under 20 minutes on two cores.
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15 -m "not long"

check: .venv/.test ## Format, lint, types and the fast tests. Under two minutes.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -q -m "not slow and not long" tests/unit tests/contract tests/guards

test-all: .venv/.test ## Runs the long suites too: many kills, deep random searches.
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 --hypothesis-profile deep

bench: .venv/.test ## Runs the benchmarks, each against its peers, and prints the ratios.
	@for script in benchmarks/*/run.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: .venv/.test ## Writes docs/reference anew from the code.
	@$(BIN)/python docs/generate.py

format: .venv/.test ## Formats the code and mends what the linter can.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: .venv/.run ## Writes the lock files anew, from pyproject.toml.
	@$(BIN)/python locks/lock.py

clean: ## Removes what was built, cached and installed here; keeps the examples' data.
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf examples/*/.tidemill

# What runs: the server and the pipeline, exactly as locked. A stamp makes the second call instant.
.venv/.run: pyproject.toml locks/build.txt locks/serve.txt locks/train.txt
	@[ -n "$(PYTHON)" ] || { echo "Tidemill needs Python 3.11 or newer with venv (on Debian: apt-get install python3 python3-venv);" \
	  "found none on the PATH. If it is elsewhere: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "Setting up .venv with $(PYTHON)"; "$(PYTHON)" -m venv .venv; }
	@echo "Installing the server and the pipeline from locks/ (about a minute)"
	@$(PIP) -r locks/build.txt
	@$(PIP) -r locks/serve.txt -r locks/train.txt
	@$(PIP) --no-build-isolation -e .
	@touch $@

# What the tests need beside: every extra, and the tools. The tests import torch, so it comes from pip like the rest.
.venv/.test: .venv/.run locks/dev.txt
	@echo "Installing every extra and the tools from locks/dev.txt (some minutes, the first time)"
	@$(PIP) -r locks/dev.txt
	@touch $@
