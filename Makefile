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
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n 2 --dist loadfile

bench: setup  ## how long the hot pieces take beside the machine's floor; ARTIFACT=DIR for one of your own
	$(VENV)/python -m pytest tests/benchmarks/hot_pieces.py tests/benchmarks/scripted_speculation.py \
		--benchmark-columns=median,iqr,rounds $(if $(ARTIFACT),--artifact $(ARTIFACT))

check: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
