# Everything that a person or a machine runs, each from a fresh clone: needs Python >= 3.11, make and g++.
#   make demo        train, run held-out sentences encrypted, compare, write a report
#   make test        lint and the default tests          make test-slow   the long ones too
#   make setup       the virtual environment in .venv    make data        the default data set
#   make lint  bench  notebooks  clean                   make docs        the documentation, into site/
#   make lock        pin the dependencies anew (needs uv)
#   make setup-openfhe  OpenFHE, which bootstraps, in .venv-openfhe: needs Python 3.10 or 3.12
# PYTHON=/path/to/python chooses the interpreter; ARGS='--help' is handed to the program that a target runs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?=
ARGS ?=
VENV := .venv
OPENFHE := .venv-openfhe
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
SOURCES := $(wildcard approx hesim models he_backend experiments tests benchmarks docs/tools)
PIP_INSTALL := $(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --no-warn-script-location
# Of what pip says, a line now and then; its errors are on standard error and come through.
PIP_SAYS := | awk '/^Collecting/ { if (++n % 20 == 0) print "  " n " packages found" } /^ *Building wheel|^Installing/ { print "  " substr($$0, 1, 72); fflush() }'

# One thread a process: the tests and the encrypted workers already fill the cores with processes.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 JAX_PLATFORMS=cpu PYTHONHASHSEED=0

export PIP_USER := 0
export PIP_REQUIRE_VIRTUALENV := 0
export MPLBACKEND ?= Agg

.PHONY: help setup setup-openfhe data demo test lint format test-slow bench notebooks docs clean lock

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# ---------------------------------------------------------------- the virtual environment
# Interpreters in order of preference: the one that the figures in the documents come from first. A shim of a
# version manager may exist and not run, so each is tried; Pyfhel needs the headers, a virtual environment ensurepip.
$(STAMPS)/venv:
	@chosen=""
	notes=""
	for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3.14 python3 python); do
	  if ! command -v "$$python" >/dev/null 2>&1; then
	    $(if $(PYTHON),notes="  there is no program $$python.\n")
	    continue
	  fi
	  if ! said=$$("$$python" -c 'import sys; print("it is Python", sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))' 2>&1); then
	    notes="$$notes  $$python does not serve: $$(head -n 3 <<<"$$said" | tr '\n' ' ')\n"
	  elif ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
	    notes="$$notes  $$python has no venv/ensurepip: install its venv package (Debian: apt-get install python3-venv).\n"
	  elif ! "$$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' >/dev/null 2>&1; then
	    notes="$$notes  $$python has no C headers, which Pyfhel is compiled against: install its dev package (Debian: apt-get install python3-dev).\n"
	  else
	    chosen="$$python"; break
	  fi
	done
	if [ -z "$$chosen" ]; then
	  printf 'make setup: no usable Python >= 3.11 found%s.\n%b  Install one, or name it: make setup PYTHON=/path/to/python3.11\n' "$(if $(PYTHON), at $(PYTHON))" "$$notes" >&2
	  exit 1
	fi
	if ! command -v "$${CXX:-g++}" >/dev/null 2>&1; then
	  printf 'make setup: no C++ compiler (%s), which Pyfhel is compiled with. Install g++ (Debian: apt-get install g++).\n' "$${CXX:-g++}" >&2
	  exit 1
	fi
	echo "setup: $$("$$chosen" --version) in $(VENV)"
	rm -rf $(VENV)
	"$$chosen" -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# Build tools come first and from a lock of their own, so that nothing unpinned is fetched for an isolated build.
$(STAMPS)/build: requirements/build.lock $(STAMPS)/venv
	@echo "setup: build tools"
	$(PIP_INSTALL) --require-hashes -r requirements/build.lock $(PIP_SAYS)
	touch $@

$(STAMPS)/dependencies: requirements/dev.lock requirements/pyfhel.cmake $(STAMPS)/build
	@echo "setup: dependencies (the first time Pyfhel is compiled, 2 to 3 minutes)"
	export PATH="$(CURDIR)/$(BIN):$$PATH" CMAKE_TOOLCHAIN_FILE="$(CURDIR)/requirements/pyfhel.cmake"
	$(PIP_INSTALL) --no-build-isolation --require-hashes -r requirements/dev.lock $(PIP_SAYS)
	$(BIN)/python -c 'import Pyfhel, jax' >/dev/null
	touch $@

$(STAMPS)/project: pyproject.toml $(STAMPS)/dependencies
	@$(PIP_INSTALL) --no-build-isolation --no-deps --editable . $(PIP_SAYS)
	touch $@
	echo "setup: done"

setup: $(STAMPS)/project
	@:

# A wheel of OpenFHE holds one CPython, whatever its tag says, and wants a C library as new as its own: 3.10 with
# glibc 2.35, or 3.12 with 2.38. Which serves is found by trying. Shims of a version manager may not run, so what
# lies behind them is tried, too.
$(OPENFHE)/.stamp: $(wildcard requirements/openfhe-*.lock)
	@notes=""
	rm -rf $(OPENFHE)
	for python in $(if $(PYTHON),"$(PYTHON)",python3.10 python3.12 "$$HOME"/.pyenv/versions/3.1[02].*/bin/python "$$HOME"/.local/share/uv/python/cpython-3.1[02].*/bin/python3); do
	  if ! command -v "$$python" >/dev/null 2>&1; then
	    $(if $(PYTHON),notes="  there is no program $$python.\n")
	    continue
	  fi
	  if ! said=$$("$$python" -c 'import sys; print(*sys.version_info[:2], sep="")' 2>&1); then
	    notes="$$notes  $$python does not run: $$(head -n 2 <<<"$$said" | tr '\n' ' ')\n"
	  elif [ ! -e "requirements/openfhe-py$$said.lock" ]; then
	    notes="$$notes  $$python does not serve: no wheel of OpenFHE holds its version.\n"
	  elif ! "$$python" -m venv $(OPENFHE) >/dev/null 2>&1; then
	    notes="$$notes  $$python has no venv/ensurepip: install its venv package.\n"
	  elif ! $(OPENFHE)/bin/python -m pip install --quiet --progress-bar off --disable-pip-version-check --require-hashes -r "requirements/openfhe-py$$said.lock"; then
	    notes="$$notes  $$python: its packages could not be installed, see above.\n"
	  elif ! said=$$($(OPENFHE)/bin/python -c 'import openfhe' 2>&1); then
	    notes="$$notes  $$python: OpenFHE is not imported: $$(tail -n 1 <<<"$$said")\n"
	  else
	    touch $@
	    echo "setup-openfhe: OpenFHE under $$("$$python" --version) in $(OPENFHE)"
	    exit 0
	  fi
	  rm -rf $(OPENFHE)
	done
	printf 'make setup-openfhe: no Python 3.10 or 3.12 whose OpenFHE is imported%s.\n%b  Install one, or name it: make setup-openfhe PYTHON=/path/to/python3.10\n' "$(if $(PYTHON), at $(PYTHON))" "$$notes" >&2
	exit 1

setup-openfhe: $(OPENFHE)/.stamp
	@:

# What the documentation is built with, at the versions that everything else has too.
$(STAMPS)/docs: requirements/docs.lock $(STAMPS)/project
	@echo "setup: the documentation's tools"
	export PATH="$(CURDIR)/$(BIN):$$PATH" CMAKE_TOOLCHAIN_FILE="$(CURDIR)/requirements/pyfhel.cmake"
	$(PIP_INSTALL) --no-build-isolation --require-hashes -r requirements/docs.lock $(PIP_SAYS)
	touch $@

# ---------------------------------------------------------------- what it is for
data: setup
	@$(BIN)/python -m models.data.datasets

demo: setup data
	@$(BIN)/hesim demo $(ARGS)

bench: setup
	@if [ -d benchmarks ]; then OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS); else echo "no benchmarks"; fi

# ---------------------------------------------------------------- checks
# All three say what they have to say before the target fails.
lint: setup
	@failed=0
	$(BIN)/ruff check $(SOURCES) || failed=1
	$(BIN)/ruff format --check $(SOURCES) || failed=1
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python $(SOURCES) || failed=1
	exit $$failed

format: setup
	@$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

test: setup lint
	@$(TEST_ENV) $(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: setup data
	@$(TEST_ENV) XLA_FLAGS= $(BIN)/python -m pytest -m slow $(ARGS)

notebooks: setup
	@shopt -s nullglob
	for notebook in notebooks/*.ipynb; do
	  echo "$$notebook"
	  $(TEST_ENV) $(BIN)/jupyter execute --timeout=1200 "$$notebook"
	done

# Notebooks are executed once, and again when they change or after `make clean`; the site opens from disk.
docs: setup $(STAMPS)/docs
	@$(TEST_ENV) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict $(ARGS) \
	  2> >(grep -v "Kernel is running over TCP" >&2)  # on this machine only, while notebooks run
	$(BIN)/python docs/tools/check_site.py site
	echo "site/index.html"

# ---------------------------------------------------------------- upkeep
clean:
	rm -rf $(VENV) $(OPENFHE) build dist site .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv reads pyproject.toml; --fork-strategy fewest gives every Python the same versions where they exist.
LOCK := uv pip compile --quiet --universal --generate-hashes \
	--fork-strategy fewest --python-version 3.11 --custom-compile-command "make lock" $(ARGS)
lock:
	$(LOCK) --extra dev -o requirements/dev.lock pyproject.toml requirements/build.in
	$(LOCK) -c requirements/dev.lock -o requirements/build.lock requirements/build.in
	$(LOCK) -c requirements/dev.lock --extra docs -o requirements/docs.lock pyproject.toml
	$(LOCK) -c requirements/dev.lock -o requirements/evaluate.lock requirements/evaluate.in
