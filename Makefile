# make train   environment, data, five epochs on FashionMNIST
# make test    everything that continuous integration runs
# make help    the rest
#
# Nothing here needs more than GNU make, Python 3.11+ and, the first time, a package index.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The stages write one environment, so `make -j train test` must take them in turn.
.NOTPARALLEL:

PYTHON ?= python3
# Relative on purpose: make splits words at spaces, so an absolute path would break in "my projects/velodrome".
VENV ?= .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
RECIPE ?= fashion-mnist-mlp
DATA_ROOT ?= data

JOBS ?= 2

.PHONY: train test test-long lint format typecheck unit bench bench-peers bench-gpu speedruns tables lock clean help

## train: make the environment, fetch the data, train RECIPE (fashion-mnist-mlp); ARGS="train.epochs=10" adds overrides
train: $(VENV)/.train-stamp
	@echo "==> Data: looking for FashionMNIST here, in the system's packages, then on the network (up to a minute)"
	@$(PY) -m velodrome data fetch fashion-mnist
	@echo "==> Training: $(RECIPE) (five epochs of the main job: about 20 seconds on two cores)"
	@$(PY) -m velodrome train $(RECIPE) $(ARGS)

## test: lint, format check, types, then every test
test: lint typecheck unit

## lint: ruff check and ruff format --check
lint: $(VENV)/.dev-stamp
	@echo "==> ruff check: mistakes and import order (a second)"
	@$(PY) -m ruff check .
	@echo "==> ruff format --check: layout (a second)"
	@$(PY) -m ruff format --check .

## typecheck: pyright over src
typecheck: $(VENV)/.dev-stamp
	@echo "==> pyright: types of src (about 20 seconds)"
	@$(PY) -m pyright --pythonpath "$(PY)"

## unit: pytest; ARGS="tests/unit -k order" selects, JOBS=1 runs one test at a time
unit: $(VENV)/.dev-stamp
	@echo "==> pytest: units, laws, faults, command line, examples (a few minutes)"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

## test-long: the full numbers of what make test repeats less often: 300 kills, 600 damages, every operation (half an hour)
test-long: $(VENV)/.dev-stamp
	@echo "==> pytest: tests marked long (half an hour)"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m long -n $(JOBS) --dist loadfile $(ARGS)

## format: let ruff fix and lay out the code
format: $(VENV)/.dev-stamp
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

## bench: measure again, then write the tables (about an hour, on an idle machine); DATA_ROOT holds the IDX files
bench: $(VENV)/.dev-stamp
	@echo "==> Start-up time (half a minute)"
	@$(PY) benchmarks/startup.py
	@echo "==> Cost added to a step (a minute)"
	@$(PY) benchmarks/overhead.py
	@echo "==> Switches of a step (a minute)"
	@$(PY) benchmarks/step_switches.py
	@echo "==> Memory that a step frees (two minutes)"
	@$(PY) benchmarks/freed_memory.py
	@echo "==> Ways of data (two minutes)"
	@$(PY) benchmarks/data_paths.py
	@echo "==> Cost of a save (three minutes)"
	@$(PY) benchmarks/saving.py
	@echo "==> Against the tutorial loop (about eight minutes)"
	@$(PY) benchmarks/tutorial_loop.py --data-root "$(DATA_ROOT)"
	@echo "==> The CNN against loops that people write (about eight minutes)"
	@$(PY) benchmarks/recipe_jobs.py --job cnn --data-root "$(DATA_ROOT)"
	@echo "==> The small GPT against loops that people write (about eight minutes)"
	@$(PY) benchmarks/recipe_jobs.py --job gpt
	@echo "==> tune against combinations set by hand (about 25 minutes)"
	@$(PY) benchmarks/tuning.py --data-root "$(DATA_ROOT)" || echo "==> tune did not reach what it claims; docs/tuning.md gets the numbers"
	@$(MAKE) --no-print-directory tables

## bench-peers: against other trainers: cost of a step, the tutorial's job, start-up, memory (half an hour, on an idle machine)
bench-peers:
	@test -x .venv-peers/bin/python || { echo "==> Environment: making .venv-peers with the other trainers (minutes, about 2 GB)"; \
	  $(PYTHON) -m venv .venv-peers; }
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r benchmarks/peers-requirements.txt
	@echo "==> Cost added to a step (five minutes)"
	@PYTHONPATH=src .venv-peers/bin/python benchmarks/peers.py
	@echo "==> The tutorial's job end to end (about fifteen minutes)"
	@PYTHONPATH=src .venv-peers/bin/python benchmarks/end_to_end.py --data-root "$(DATA_ROOT)"
	@echo "==> From the start of Python to the first update (four minutes)"
	@PYTHONPATH=src .venv-peers/bin/python benchmarks/peers_startup.py
	@echo "==> Memory (five minutes)"
	@PYTHONPATH=src .venv-peers/bin/python benchmarks/memory.py --data-root "$(DATA_ROOT)"
	@$(MAKE) --no-print-directory tables

## bench-gpu: steps, waits and memory on a CUDA device, then tests/gpu (under ten minutes); PYTHON=... has torch, nothing is installed
bench-gpu:
	@echo "==> Steps on the CUDA device, eager and captured, then tests/gpu (about six minutes)"
	@PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

## speedruns: time to a stated accuracy over ten seeds (about a quarter of an hour, on an idle machine); DATA_ROOT holds the IDX files
speedruns: $(VENV)/.dev-stamp
	@$(PY) benchmarks/speedruns.py --data-root "$(DATA_ROOT)"
	@$(MAKE) --no-print-directory tables

## tables: write the measured tables of README.md and docs from benchmarks/records
tables: $(VENV)/.train-stamp
	@$(PY) scripts/make_tables.py

## lock: resolve the newest versions in a fresh environment and write the two lock files
lock:
	@$(PYTHON) scripts/write_locks.py

## clean: remove the environment and every cache; runs and data stay
clean:
	@echo "==> Removing $(VENV), caches and build folders; runs/ and data/ stay"
	@rm -rf "$(VENV)" build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

## help: this list
help:
	@sed -n 's/^## /  make /p' Makefile

$(VENV)/.made-stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Velodrome needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not installed)." \
	       "Install one and name it: make train PYTHON=python3.12" >&2; exit 2; }
	@echo "==> Environment: making $(VENV) with $$($(PYTHON) --version) (a few seconds)"
	@$(PYTHON) -m venv --clear "$(VENV)" || { \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@touch $@

$(VENV)/.train-stamp: $(VENV)/.made-stamp requirements.lock pyproject.toml
	@echo "==> Packages: installing requirements.lock (a minute; several with a build of torch for CUDA, which is large)"
	@$(PIP_INSTALL) --requirement requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-stamp: $(VENV)/.train-stamp requirements-dev.lock
	@echo "==> Packages for the checks: installing requirements-dev.lock (half a minute)"
	@$(PIP_INSTALL) --no-deps --requirement requirements-dev.lock
	@touch $@
