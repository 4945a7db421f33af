# Two commands do all the set-up on a fresh machine: make quickstart, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help quickstart test check bench install clean

help:
	@echo "make quickstart  install, then run jobs/quickstart.yaml end to end on this machine"
	@echo "make test        install, then run the whole test suite"
	@echo "make check       format, lint, types, import contracts"
	@echo "make bench       the CPU benchmarks beside their references; writes benchmarks.json"

install: $(STAMP)

# The stamp is written last: a .venv without it, or one whose pip does not start, is built again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV), two to four minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/transfusion run jobs/quickstart.yaml --profile cluster/laptop.yaml

# Two processes share the tests, and one of them has the Ray of all that share one.
test: $(STAMP)
	$(BIN)/pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
