PYTHON ?= python3
VENV := .venv/bin

.PHONY: setup all stack reference test coverage mutants check fuzz crash bench quality gpu audit

setup: .venv/ready  ## .venv from the lock

.venv/ready: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: found Python %d.%d, expected 3.11 or newer; name one: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@echo 'Setting up .venv from requirements/dev.txt, once: 3.5 GB on disk, some minutes.'
	$(PYTHON) -m venv .venv
	$(VENV)/pip install --disable-pip-version-check -r requirements/dev.txt
	@touch $@

all: setup  ## checkpoint -> ONNX -> INT4 -> measured -> gated -> published
	$(VENV)/python -m build all

stack: setup  ## two arms behind nginx, Prometheus beside them, tried and taken down; Debian: nginx prometheus
	$(VENV)/python -m build all --only onnx-fp16 gptq-int4-onnx
	$(VENV)/python -m serve stack artifacts/qwen3-vl-micro/gptq-int4-onnx artifacts/qwen3-vl-micro/onnx-fp16

reference: setup  ## docs/reference, from the schemas
	$(VENV)/python docs/reference/write.py

test: setup check  ## everything CI holds the project to
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n 2 --dist loadfile

coverage: setup  ## how many of the lines the tests run, those of child processes too
	OMP_NUM_THREADS=1 $(VENV)/python -m coverage run -m pytest -n 2 --dist loadfile
	$(VENV)/python -m coverage combine --quiet
	$(VENV)/python -m coverage report --skip-covered --sort=cover

.venv-mutants/ready: .venv/ready
	$(VENV)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv-mutants \
		mutmut==3.8.1 libcst==1.9.0
	touch $@

mutants: .venv-mutants/ready  ## small changes of gate, statistics, int4, policy, store: which do the tests notice
	PYTHONPATH=.venv-mutants $(VENV)/python -m tests.benchmarks.mutants $(MODULES) $(if $(SAMPLE),--sample $(SAMPLE))

fuzz: setup  ## 5,000 hostile requests of each kind to an arm
	$(VENV)/python -m pytest tests/test_arm_fuzz.py -s --fuzz 5000

crash: setup  ## `build all` killed at 50 random moments, publish and pull at 150 each
	$(VENV)/python -m pytest tests/test_crash.py -s --crashes 50

bench: setup  ## how long the hot pieces take beside the machine's floor; ARTIFACT=DIR for one of your own
	$(VENV)/python -m pytest tests/benchmarks/hot_pieces.py tests/benchmarks/scripted_speculation.py \
		--benchmark-columns=median,iqr,rounds $(if $(ARTIFACT),--artifact $(ARTIFACT))

quality: setup  ## what 4 bits cost the embedded checkpoint: RTN, GPTQ and AWQ; TRIED=1 for what was tried besides
	OMP_NUM_THREADS=1 $(VENV)/python -m tests.benchmarks.int4_quality $(if $(TRIED),--tried)

.venv-gpu/ready: requirements/gpu.txt requirements/dev.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check -c requirements/dev.txt -r requirements/gpu.txt
	@touch $@

gpu: .venv-gpu/ready  ## arms on this machine's NVIDIA GPU; CHECKPOINTS="DIR DIR…", the 16-bit one first
	.venv-gpu/bin/python -m bench gpu $(or $(CHECKPOINTS),bench/micro/checkpoint)

.venv-audit/ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@touch $@

audit: .venv-audit/ready  ## known vulnerabilities of every locked version; one that PyPI does not know is an error
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements/dev.txt

check: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
