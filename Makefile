# make demo   set up .venv, then prune, attack, accelerate and time a robust detector on rendered images
# make test   set up .venv, then ruff, clang-format, mypy and the tests; make check: the quick ones
# make help   the rest

PYTHON ?= python3
VENV ?= .venv
# What pip installs beside the package, as extras of pyproject.toml.
EXTRAS ?= dev
# Test files are run by this many processes.
PROCESSES ?= 2
# More arguments for pytest in make test-torchvision, for example -m "not slow": without whole runs, which take minutes each.
SELECTED ?=
# The releases that are tested; /dev/null for the newest of everything.
CONSTRAINTS ?= constraints.txt
# More arguments for every pip call, for example a package index with CPU builds of torch.
PIP_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CXX_FILES := $(foreach folder,csrc csrc/cpu csrc/cuda csrc/cuda/* tests/gpu_checks/emulation tests/gpu_checks/ptx tests/support tests/support/emulated_instructions,$(wildcard $(addprefix $(folder)/*.,h cpp cuh cu)))
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.* csrc/cuda/*/*.*)
# "===" takes the registry's build by its plain version, which on Linux has CUDA.
TORCH := $(if $(shell command -v nvidia-smi 2>/dev/null),torch===2.13.0,torch==2.13.0)
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
# GiB of disk that a new environment takes.
SPACE := $(if $(findstring ===,$(TORCH)),8,3)
FREE := df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'
# $(call or_end,NAME): after a command that may fail, end with the sentence in that variable.
or_end = || { echo "$($(1))" >&2; exit 1; }
NO_PYTHON = Expected Python at PYTHON=$(PYTHON), got no such command. Install Python 3.10 or newer, or name another with make PYTHON=...
READ_ONLY = Expected a folder that can be written for $(VENV), got $(CURDIR), which cannot. Clone somewhere else, or name a folder with make VENV=...
NO_SPACE = Expected $(SPACE) GiB of free disk for $(VENV), got less (df -h . shows it). Free some and give the same command again.
NO_VENV = Expected $(PYTHON) -m venv to make $(VENV), got the error above. On Debian and Ubuntu: apt install python3-venv.
NO_GPU = Expected an NVIDIA GPU and its driver for make gpu, got a machine without nvidia-smi. Nothing was run.
NO_PACKAGES = Expected pip to install this, got the error above. Without a network, or behind a proxy, name an index or a folder of wheels: make PIP_ARGS=\"--index-url URL\". Then give the same command again: pip keeps what it has downloaded.

# torchvision's wheels fit the registry's build of torch alone.
TORCHVISION_VENV ?= .venv-torchvision
TORCHVISION := VENV=$(TORCHVISION_VENV) TORCH=torch===2.13.0 EXTRAS=dev,torchvision

.PHONY: help setup demo test check lint types docs bench has-gpu gpu clean setup-torchvision test-torchvision

help:  ## show these targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 20

setup: $(READY)  ## make .venv with prunekit, its compiled extension and the development tools: about four minutes

$(READY): $(SOURCES)
	@command -v $(PYTHON) >/dev/null $(call or_end,NO_PYTHON)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prunekit needs Python 3.10 or newer; found " + sys.version.split()[0] + ". Name another with make PYTHON=...")'
	@test -w . $(call or_end,READ_ONLY)
	@test -e $@ || [ "$$($(FREE))" -ge $(SPACE) ] $(call or_end,NO_SPACE)
	@echo "Setting up $(VENV), once: about four minutes on two idle cores, ten on busy ones, and $(SPACE) GiB of disk."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) $(call or_end,NO_VENV)
	@echo "[1/2] $(TORCH): the largest download"
	@$(PIP_INSTALL) "$(TORCH)" "setuptools>=77" $(call or_end,NO_PACKAGES)
	@echo "[2/2] prunekit[$(EXTRAS)]: its packages, then the compiler, for about a minute"
	@$(PIP_INSTALL) --no-build-isolation --constraint $(CONSTRAINTS) --editable ".[$(EXTRAS)]" $(call or_end,NO_PACKAGES)
	@$(BIN)/python -c 'from prunekit.nn import native_status as s; print("Set up. Kernels for the CPU:", s().instruction_set or s().reason)'
	@touch $@

demo: $(READY)  ## the main job on rendered images; no data needed
	@$(BIN)/prunekit demo --out runs/demo

test: lint types  ## everything that must pass
	@$(PYTEST)

check: lint types  ## the same without slow tests and those for GPUs: under three minutes on two cores
	@$(PYTEST) -m "not slow and not gpu"

setup-torchvision:  ## make .venv-torchvision, with torchvision and torch's build from the registry: several gigabytes
	@$(MAKE) --no-print-directory setup $(TORCHVISION)

test-torchvision: setup-torchvision  ## the tests of torchvision's detectors and of the zoo's bench
	@OMP_WAIT_POLICY=passive $(TORCHVISION_VENV)/bin/python -m pytest -n $(PROCESSES) --dist loadfile $(SELECTED) \
	    tests/torchvision_detectors tests/bench/test_zoo_bench.py

lint: $(READY)  ## ruff's rules and format, clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

types: $(READY)  ## mypy --strict
	@$(BIN)/mypy

docs: $(READY)  ## the documentation as a site, into site/; strict: a link that leads nowhere is an error
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(PIP_INSTALL) -q --no-build-isolation --constraint $(CONSTRAINTS) --editable ".[$(EXTRAS),docs]" $(call or_end,NO_PACKAGES)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site
	@echo "Open site/index.html, or serve it: $(BIN)/python -m mkdocs serve"

bench: $(READY)  ## latency of pruned YOLOv3 and of its layers against dense engines, into runs/bench/
	@$(BIN)/prunekit bench end-to-end --out runs/bench/rows.jsonl
	@$(BIN)/prunekit bench layers --out runs/bench/rows.jsonl
	@$(BIN)/prunekit bench plot runs/bench/rows.jsonl --out runs/bench/speedup.png

has-gpu:
	@command -v nvidia-smi >/dev/null || test -e /dev/nvidiactl -o -e /dev/dxg $(call or_end,NO_GPU)

gpu: has-gpu $(READY)  ## on a machine with an NVIDIA GPU: its tests, layers and nets against cuDNN, in ten minutes, into runs/gpu/
	@$(BIN)/python -m bench.gpu_check --out runs/gpu

clean:  ## remove what setup and runs made
	rm -rf $(VENV) $(TORCHVISION_VENV) build dist site runs *.egg-info prunekit/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
