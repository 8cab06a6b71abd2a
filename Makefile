# Two commands, each sufficient on its own in a fresh checkout on a machine with python3 >= 3.11:
#   make demo        sets up .venv/, trains a translator, a classifier and a detector on real data, and shows all three
#   make test        sets up .venv/, then runs lint, types and tests
# And besides:
#   make test-slow   as make test, and then the tests that take minutes
#   make bench       compares the speed of all three models with other libraries': 15 minutes, alone on the machine
#   make setup       sets up .venv/ and nothing else
#   make clean       removes .venv/ and the caches of the tools
# Another interpreter: make test PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup check-python demo test test-slow bench clean

PYTHON ?= python3
VENV := .venv
checksum = $(shell { $(1); } 2>&1 | cksum | cut -d' ' -f1)
# The environment belongs to one interpreter and one place, and is ready when the dependencies of today were installed.
BASE := $(VENV)/base-$(call checksum,$(PYTHON) -VV; pwd)
READY := $(VENV)/ready-$(call checksum,cat pyproject.toml)
# There only during an installation: a set-up that was interrupted starts from nothing.
INSTALLING := $(VENV)/installing

STEPS := $(if $(filter test-slow,$(MAKECMDGOALS)),5,$(if $(filter setup,$(MAKECMDGOALS)),1,$(if $(filter bench,$(MAKECMDGOALS)),3,4)))

help:
	@sed -n 's/^#   //p' Makefile

demo: setup
	@echo "[2/$(STEPS)] Demo: a German-English translator from real text, 4.5 minutes on 2 cores"
	$(VENV)/bin/python examples/demo_translator.py
	echo "[3/$(STEPS)] Demo: a classifier of pictures, 2 minutes on 2 cores"
	$(VENV)/bin/python examples/demo_vit.py
	echo "[4/$(STEPS)] Demo: a detector of clothes on photographs, 2 minutes on 2 cores"
	$(VENV)/bin/python examples/demo_detr.py

test: setup
	@echo "[2/$(STEPS)] Lint and format"
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	echo "[3/$(STEPS)] Types"
	$(VENV)/bin/mypy
	echo "[4/$(STEPS)] Tests"
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal

test-slow: test
	@echo "[5/$(STEPS)] Slow tests"
	$(VENV)/bin/python -m pytest -m slow

bench: setup
	@echo "[2/$(STEPS)] Benchmarks against other libraries, 15 minutes on 2 cores; leave the machine alone meanwhile"
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[benchmarks]'
	$(VENV)/bin/python benchmarks/bench.py
	echo "[3/$(STEPS)] Time to the first result"
	$(VENV)/bin/python benchmarks/startup.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

check-python:
	@if ! command -v $(PYTHON) > /dev/null; then
		echo "$(PYTHON) was not found. Install Python 3.11 or newer (Debian: apt install python3 python3-venv)" \
			"or name an interpreter: make test PYTHON=/path/to/python3" >&2
		exit 1
	fi
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
		echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed." \
			"Install one and name it: make test PYTHON=python3.12" >&2
		exit 1
	fi
	if ! $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null; then
		echo "$(PYTHON) cannot create virtual environments. On Debian: apt install python3-venv" >&2
		exit 1
	fi

setup: check-python
	@if [ -e $(BASE) ] && [ -e $(READY) ] && [ ! -e $(INSTALLING) ]; then
		echo "[1/$(STEPS)] Environment: $(VENV)/ is up to date"
		exit 0
	fi
	echo "[1/$(STEPS)] Environment: $(VENV)/ with $$($(PYTHON) --version)"
	if [ ! -e $(BASE) ] || [ -e $(INSTALLING) ]; then
		rm -rf $(VENV)
		$(PYTHON) -m venv $(VENV)
	fi
	touch $(INSTALLING)
	rm -f $(VENV)/ready-*
	echo "      installing torch, transformers and the tools: at first about 3 GB to download and 6 GB on disk"
	$(VENV)/bin/python -m pip install --disable-pip-version-check --editable '.[dev,examples,interchange]' \
		| sed --unbuffered --quiet -e 's/^ *\(Downloading .*[0-9] [MG]B)\)/      \1/p' \
			-e 's/^Installing collected packages.*/      unpacking the packages, which takes longest/p'
	touch $(BASE) $(READY)
	rm $(INSTALLING)
