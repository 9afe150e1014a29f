PYTHON ?= python3
VENV := .venv/bin

.PHONY: setup all test check bench

setup: .venv/ready  ## .venv from the lock

.venv/ready: requirements/dev.txt
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	touch $@

all: setup  ## checkpoint -> ONNX -> INT4 -> measured -> gated -> published
	$(VENV)/python -m build all

test: setup check  ## everything CI holds the project to
	$(VENV)/python -m pytest

check: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

bench: setup  ## speed, as ratios of things run in turn
	$(VENV)/python -m pytest tests/benchmarks --benchmark-only
