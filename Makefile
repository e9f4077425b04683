# The commands of this project. They need Python 3.11 or newer, git and make; everything else goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
PINS := tools/constraints.txt
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# A plain path in a .pth file: the other way of an editable install costs every start of a process 30 ms.
EDITABLE := --config-settings editable_mode=compat

# The first Python that is new enough; make PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check bench lock

help: ## print what make can do here
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "make %-8s%s\n", $$1, $$2}'

demo: $(VENV)/.installed ## install into .venv and render the built-in session: stems, a picture, a table
	$(BIN)/sideman demo

test: $(VENV)/.installed-dev ## install what is missing and run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev ## style, types and the laws of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: $(VENV)/.installed-dev ## measure this machine: every suite
	$(BIN)/sideman bench

lock: ## pin the newest versions that pyproject.toml allows in tools/constraints.txt
	rm -rf build/lock && "$(PYTHON)" -m venv build/lock
	build/lock/bin/python -m pip --quiet --disable-pip-version-check install -e '.[dev]'
	{ grep '^#' $(PINS); build/lock/bin/python -m pip freeze --exclude-editable; \
		build/lock/bin/python -m pip freeze | sed -n 's/^onnxruntime-gpu==/onnxruntime==/p'; \
		grep -o 'torch==[0-9.]*' pyproject.toml; } > build/constraints.txt
	mv build/constraints.txt $(PINS) && rm -rf build/lock

$(VENV)/.installed: pyproject.toml $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV): some 400 MB the first time, so a few minutes."
	@$(PIP) install -c $(PINS) $(EDITABLE) -e .
	@touch $@

# The developer's set contains the player's: one stamp covers both.
$(VENV)/.installed-dev: pyproject.toml $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV), with the tools for tests: some 500 MB the first time, so a few minutes."
	@$(PIP) install -c $(PINS) $(EDITABLE) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "$(PYTHON) is no Python of version 3.11 or newer; name another: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
