# Every target first makes a virtual environment of its own; nothing but Python 3.11 or newer and a package index is needed.
#   make PYTHON=/path/to/python3.12 test    use this interpreter
#   make TEST_JOBS=8 test                   run the tests in 8 processes
#   make test TESTS=tests/ops               run some of the tests

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_JOBS ?= 2
TESTS ?= tests

# The first interpreter that is new enough; `python3` is the default and often is.
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c '$(ENOUGH)' 2>/dev/null; then echo $$p; exit; fi; done; echo python3)

.DEFAULT_GOAL := help
.PHONY: help install demo test check format clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

install: $(INSTALLED)  ## make .venv and install the package with its development tools

demo: $(INSTALLED)  ## show retrieval at work on the model that comes with the package
	$(BIN)/landmark demo

# One thread per test process: more threads than cores would only slow each other down.
test: $(INSTALLED)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) $(TESTS)

check: $(INSTALLED)  ## lint, formatting, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(INSTALLED)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is written last, so that an installation that broke off is taken up again by the next `make`.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c '$(ENOUGH)' 2>/dev/null || { \
		echo "landmark needs Python 3.11 or newer; $(PYTHON) is older or missing." \
			"Name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "could not make $(VENV); Debian and Ubuntu keep venv in the package python3-venv" >&2; exit 1; }

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
