# Two commands for a new checkout: `make demo` and `make test`. Each installs what it needs, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PINS := requirements.txt
# Wherever this is set, every process would compile all that it imports, which doubles the time of a test or a task.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo down test test-with-servers test-without-servers lint format dag-pages pins

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11

install: $(BIN)/lens ## Make the virtual environment, with the pinned versions

$(BIN)/lens: $(PINS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' $(PINS))"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python $(PINS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: install ## Run a demo marketplace through the whole workflow, on real servers that stay up
	$(BIN)/lens demo

down: install ## Stop the local stack
	$(BIN)/lens down

test: install ## Run all tests, on real servers that are started for them
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-with-servers test-without-servers

# The servers are mostly waited for: meanwhile the other tests compute.
test-with-servers: install
	$(BIN)/python -m pytest -m servers

test-without-servers: install
	$(BIN)/python -m pytest -m "not servers"

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dag-pages: install ## Write docs/dags from the DAG files
	$(BIN)/python docs/dag_pages.py

pins: install ## Resolve the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --no-header --python-version 3.11 --extra dev --upgrade -o $(PINS) pyproject.toml
