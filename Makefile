# `make demo` plays everything and writes one page. `make test` runs every test, `make unit` the quick
# ones, `make notebooks` every notebook, `make notebooks-saved` renews their outputs, `make docs` the
# pages. Each makes its own environment in .venv first.

PYTHON ?= python3
VENV := .venv/bin
# Tests and notebooks at once: one process a core, eight at most, each on one thread.
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
WORKERS ?= $(shell echo $$(($(CORES) < 8 ? $(CORES) : 8)))
COMMA := ,
PINNED := --quiet --constraint constraints.txt

# uv installs the same pinned packages in a quarter of the time, where it is there and reaches an
# index (pip's own settings it does not read). pip compiles every module of every package on one core
# before anything runs, 20,000 files of which most are never imported: Python does it at the import.
# benchmarks/installation.py has the figures.
PIP := $(VENV)/pip install --no-compile $(PINNED)
ifneq ($(shell command -v uv),)
  MAKE_VENV := uv venv --quiet --seed --python $(PYTHON) .venv
  INSTALL = uv pip install --python $(VENV)/python $(PINNED) $(1) || $(PIP) $(1)
else
  MAKE_VENV := $(PYTHON) -m venv .venv
  INSTALL = $(PIP) $(1)
endif

.PHONY: demo test unit notebooks notebooks-saved docs

demo: .venv/ready
	$(VENV)/openbook demo

test: .venv/ready-dev
	$(VENV)/pytest --numprocesses $(WORKERS)

unit: .venv/ready-dev
	$(VENV)/pytest --numprocesses $(WORKERS) -m "not integration and not slow"

# Those that train or download begin first; whoever is free takes the next. Solutions of exercises are
# executed too, and outputs are weighed.
LONG := $(wildcard notebooks/10_*.ipynb) $(sort $(wildcard notebooks/0[1678]_*.ipynb))
NOTEBOOKS := $(LONG) $(filter-out $(LONG),$(sort $(wildcard notebooks/*.ipynb)))
notebooks: .venv/ready-dev
	printf '%s\n' $(NOTEBOOKS) | OMP_NUM_THREADS=1 xargs -P $(WORKERS) -n 1 \
	  $(VENV)/python tests/play_notebooks.py

# The outputs that readers see without running anything (tests/saved_outputs.py); Chromium draws the
# figures. One after the other: `make notebooks-saved NOTEBOOKS=notebooks/00_tour.ipynb`.
notebooks-saved: .venv/ready-dev
	OMP_NUM_THREADS=1 $(VENV)/python tests/saved_outputs.py $(NOTEBOOKS)

# The pages in docs/, as HTML in site/; a warning, such as a broken link, is an error.
docs: .venv/ready-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build

# One resolution each: what the tests need beside the package is resolved together with it.
.venv/ready: pyproject.toml constraints.txt
	test -x $(VENV)/python || $(MAKE_VENV)
	$(call INSTALL,--editable .)
	touch $@

.venv/ready-dev: pyproject.toml constraints.txt
	test -x $(VENV)/python || $(MAKE_VENV)
	$(call INSTALL,--editable '.[dev$(COMMA)docs$(COMMA)notebook]')
	touch $@ .venv/ready
