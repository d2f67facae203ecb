# make demo   set up .venv, then prune, attack, accelerate and time a detector trained on rendered images
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
# More arguments for every pip call, for example a package index with CPU builds of torch.
PIP_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CXX_FILES := $(foreach folder,csrc csrc/cpu csrc/cuda csrc/cuda/* tests/gpu_checks/emulation,$(wildcard $(addprefix $(folder)/*.,h cpp cuh cu)))
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.* csrc/cuda/*/*.*)
# "===" takes the registry's build by its plain version, which on Linux has CUDA.
TORCH := $(if $(shell command -v nvidia-smi 2>/dev/null),torch===2.13.0,torch==2.13.0)
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS)

# torchvision's wheels fit the registry's build of torch alone.
TORCHVISION_VENV ?= .venv-torchvision
TORCHVISION := VENV=$(TORCHVISION_VENV) TORCH=torch===2.13.0 EXTRAS=dev,torchvision

.PHONY: help setup demo test check lint types bench gpu clean setup-torchvision test-torchvision

help:  ## show these targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 20

setup: $(READY)  ## make .venv with prunekit, its compiled extension and the development tools

$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prunekit needs Python 3.10 or newer; found " + sys.version.split()[0] + ". Name another with make PYTHON=...")'
	@echo "Setting up $(VENV): torch, the compiled extension and the tools (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) "$(TORCH)" "setuptools>=77"
	@$(PIP_INSTALL) --no-build-isolation --constraint constraints.txt --editable ".[$(EXTRAS)]"
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

bench: $(READY)  ## latency of pruned YOLOv3 and of its layers against dense engines, into runs/bench/
	@$(BIN)/prunekit bench end-to-end --out runs/bench/rows.jsonl
	@$(BIN)/prunekit bench layers --out runs/bench/rows.jsonl
	@$(BIN)/prunekit bench plot runs/bench/rows.jsonl --out runs/bench/speedup.png

gpu: $(READY)  ## on a machine with an NVIDIA GPU: its tests, layers and nets against cuDNN, in ten minutes, into runs/gpu/
	@$(BIN)/python -m bench.gpu_check --out runs/gpu

clean:  ## remove what setup and runs made
	rm -rf $(VENV) $(TORCHVISION_VENV) build runs *.egg-info prunekit/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
